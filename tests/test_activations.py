"""Activations: what a stage holds at once follows from the layers that it has, and bounds hold for every such stage."""

from itertools import combinations

import pytest

from llmpq.costs import derive_costs
from llmpq.costs.activations import own_activations
from llmpq.costs.live_bytes import stage_bytes
from llmpq.costs.table import CostTable
from llmpq.hardware.cluster import Cluster
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.workload import Batch
from tests.values import llama_graph

OPTIONS = parse_precisions("16,w8a8,w4a16")
SHAPE = (4, 64, 64)


def costs(engine: str = "local") -> CostTable:
    return derive_costs(llama_graph(), Cluster.load("1xT4,1xCPU"), Batch(4, 64, 8), OPTIONS, "float16", engine, timed=False)


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_stage_is_charged_what_its_own_layers_hold(device: int, is_first: bool) -> None:
    graph, cluster = llama_graph(), Cluster.load("1xT4,1xCPU")
    found = own_activations(graph, cluster.devices, OPTIONS, SHAPE)
    for count in (1, 2, 3):
        for options in combinations(range(3), count):
            layers = tuple((graph.kinds[0], OPTIONS[option]) for option in options)
            expected = stage_bytes(graph, layers, SHAPE, cluster.devices[device].type.kind == "cpu", is_first)
            assert found.of_stage(device, ((0, option) for option in options), is_first) == expected
    assert found.of_stage(device, (), is_first) == 0


def test_the_bounds_hold_for_every_stage_on_a_device() -> None:
    for phase in (*costs().prefill, *costs().decode):
        for device in (0, 1):
            of_one = [phase.most_activations(device, (option,), is_first=True) for option in range(3)]
            assert phase.least_activations(device) == min(of_one)
            assert max(of_one) <= phase.most_activations(device, is_first=True) < phase.most_activations(device)
            assert phase.most_activations(device) <= phase.activation_bytes


def test_options_that_are_taken_away_leave_the_figures_of_the_others() -> None:
    phase = costs().prefill[0]
    narrowed = phase.activations.narrowed((0, 2))
    for narrow, wide in enumerate((0, 2)):
        assert narrowed.of_stage(1, ((0, narrow),), True) == phase.activations.of_stage(1, ((0, wide),), True)


def test_another_engine_needs_the_same_for_every_option() -> None:
    phase = costs("transformers").prefill[0]
    assert {phase.most_activations(0, (option,), first) for option in range(3) for first in (True, False)} == {
        phase.activation_bytes
    }


def test_eight_bit_activations_and_unpacked_weights_cost_memory() -> None:
    phase = costs().prefill[0]
    sixteen, rounded, unpacked = (phase.most_activations(1, (option,), True) for option in range(3))
    largest = max((linear.in_features * linear.out_features, linear.in_features) for linear in llama_graph().kinds[0].linears)[0]
    assert rounded > sixteen
    assert unpacked - sixteen > 2 * largest
    assert PRECISIONS["w8a8"] in OPTIONS
