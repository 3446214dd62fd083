"""Recovery: the plan without a lost device keeps every precision, and fewer sequences run where the memory is short."""

from dataclasses import replace

import pytest

from llmpq.answers.recovery import plan_without
from llmpq.errors import ClusterError, InfeasibleError
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan
from llmpq.planning.costing import costed
from llmpq.planning.joint import joint_plan
from llmpq.precision import parse_precisions
from llmpq.program import Program, Request, Target
from llmpq.sensitivity import prior
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch
from tests.values import llama_graph

GRAPH = llama_graph(4)
RULES = (
    "layers[0].precision == w8a16",
    "layers[1].precision == w4a16",
    "layers[2:4].precision == 16",
    "layers[0].device == 'CPU:0'",
    "layers[1].device == 'CPU:1'",
    "layers[2:4].device == 'CPU:2'",
)


def three(memory: str) -> Cluster:
    return Cluster.from_yaml(f"devices: [{{type: CPU, count: 3, memory: {memory}, reserve: 0 B}}]", "three.yaml")


def planned(memory: str) -> Plan:
    """Three stages, a precision each."""
    options = parse_precisions(("16", "w8a16", "w4a16"))
    request = Request(three(memory), Batch(8, 64, 32), options, Target(None, explicit=True), parse_rules(RULES))
    found: Plan = joint_plan(replace(costed(Program(GRAPH, request)), sensitivity=prior(GRAPH, options))).require("plan")
    return found


def test_the_layers_go_to_the_devices_that_are_left_each_as_it_was_quantized() -> None:
    plan = planned("64 MiB")
    without = plan_without(GRAPH, plan, ("CPU:1",))
    assert without.options == plan.options == ("w8a16", "w4a16", "16", "16")
    assert {stage.device for stage in without.stages} == {"CPU:0", "CPU:2"}
    assert without.constraints == tuple(rule for rule in RULES if "CPU:1" not in rule)
    assert (without.batch, without.compute_dtype) == (plan.batch, plan.compute_dtype)
    last = plan_without(GRAPH, without, ("CPU:0",))
    assert [(stage.device, stage.options) for stage in last.stages] == [("CPU:2", plan.options)]


def test_fewer_sequences_run_at_a_time_where_all_do_not_fit() -> None:
    plan = planned("64 MiB")
    without = plan_without(GRAPH, replace(plan, cluster=three("1300 KiB"), constraints=()), ("CPU:0",))
    assert without.options == plan.options
    assert 1 <= without.batch.batch_size < 8
    assert all(memory.total <= memory.capacity for memory in without.prediction.memory)


def test_where_nothing_fits_the_reasons_are_told() -> None:
    plan = replace(
        planned("64 MiB"), cluster=Cluster.from_yaml("devices: [{type: CPU, count: 3, memory: 200 KiB, reserve: 0 B}]", "x")
    )
    with pytest.raises(InfeasibleError, match="no plan exists"):
        plan_without(GRAPH, plan, ("CPU:0",))


def test_without_any_device_there_is_no_plan() -> None:
    with pytest.raises(ClusterError, match="no device is left"):
        plan_without(GRAPH, planned("64 MiB"), ("CPU:0", "CPU:1", "CPU:2"))
