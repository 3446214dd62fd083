"""Canonical text: goldens of graph, sensitivity and plans."""

from dataclasses import replace

import pytest

from llmpq.plan import DeviceMemory, Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.precision import parse_precisions
from llmpq.printing import format_graph, format_plan, format_program, format_ranges, format_sensitivity
from llmpq.sensitivity import SensitivityTable, prior
from tests.conftest import Golden
from tests.values import WORKLOAD, llama_graph, llama_kind, program, two_cpus

MIB = 2**20


@pytest.fixture
def plan() -> Plan:
    """Written by hand, so that no golden changes with the costs."""
    stages = (Stage("CPU:1", 0, ("16",)), Stage("CPU:0", 1, ("w8a16", "w8a16", "w4a16")))
    return Plan(
        model="tiny",
        compute_dtype="bfloat16",
        workload=WORKLOAD,
        cluster=two_cpus(),
        pipelines=(Pipeline(stages, 2, 4),),
        prediction=Prediction(
            prefill_s=1.25,
            decode_s=2.5,
            memory=(
                DeviceMemory("CPU:1", 3 * MIB, MIB, MIB // 2, MIB // 4, 0, 64 * MIB),
                DeviceMemory("CPU:0", 5 * MIB, 3 * MIB, MIB // 2, 0, MIB // 4, 64 * MIB),
            ),
            provenance="roofline",
        ),
        quality=Quality(0.0125, 0.0198, "prior"),
        optimality=Optimality(3.75, 3.7, False, "highs"),
    )


def test_the_text_of_a_graph(golden: Golden) -> None:
    golden("graph_llama.txt", format_graph(llama_graph(tied=True)))


def test_the_text_of_a_graph_of_two_kinds_experts_and_an_untied_head(golden: Golden) -> None:
    dense = llama_kind(window=128)
    *attention, gate, up, down = dense.linears
    experts = tuple(replace(linear, experts=4, active_experts=2) for linear in (gate, up, down))
    mixed = replace(dense, name="layer-1", linears=(*attention, *experts), attention=replace(dense.attention, window=None))
    graph = replace(llama_graph(num_layers=5, tied=False), kinds=(dense, mixed), layer_kind=(0, 1, 1, 1, 0))
    golden("graph_two_kinds.txt", format_graph(graph))


def test_the_text_of_sensitivity(golden: Golden) -> None:
    golden("sensitivity_prior.txt", format_sensitivity(prior(llama_graph(), parse_precisions("16,w8a16,w4a16"))))


def test_the_text_of_a_plan(golden: Golden, plan: Plan) -> None:
    golden("plan_two_stages.txt", format_plan(plan))


def test_the_text_of_a_plan_that_is_proven(plan: Plan) -> None:
    proven = replace(plan, optimality=Optimality(3.75, 3.75, True, "highs"))
    assert format_plan(proven).splitlines()[-1] == "  objective 3.75 s by highs, bound 3.75 s, gap 0.00% proven"


def test_the_text_of_a_baseline_without_a_budget(golden: Golden, plan: Plan) -> None:
    baseline = replace(plan, optimality=Optimality(3.75, None, False, "assign-even"), quality=Quality(0.0125, None, "prior"))
    golden("plan_baseline.txt", format_plan(baseline))


def test_the_text_of_a_program_has_what_is_there(plan: Plan) -> None:
    table = SensitivityTable(("16",), ((0.0,),) * 4, "prior", "prior")
    text = format_program(replace(program(), sensitivity=table, plan=plan))
    assert text == "\n".join([format_graph(llama_graph()), format_sensitivity(table), format_plan(plan)])
    assert format_program(program()) == format_graph(llama_graph())


@pytest.mark.parametrize(
    ("options", "first", "text"),
    [
        (("a",), 0, "0 a"),
        (("a", "a", "b"), 4, "4-5 a, 6 b"),
        (("a", "b", "a"), 0, "0 a, 1 b, 2 a"),
        ((), 3, ""),
    ],
)
def test_equal_neighbours_are_folded(options: tuple[str, ...], first: int, text: str) -> None:
    assert format_ranges(options, first) == text
