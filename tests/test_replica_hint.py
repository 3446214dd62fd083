"""The line that names --replicas where a plan of one pipeline leaves room for more."""

from dataclasses import replace

import pytest

from llmpq.hardware.cluster import Cluster
from llmpq.planning.joint import joint_plan
from llmpq.planning.replica_hint import replica_hint, times_it_fits
from llmpq.program import Program, Target
from llmpq.workload import Batch, Serving, Workload
from tests.conftest import CommandLine
from tests.random_programs import with_costs
from tests.test_group_search import quad

SERVING = Serving(1.0, 16, 4)
ALIKE = """
name: alike
devices:
  - {type: CPU, count: %d, memory: %s, host: a}
"""


def planned(count: int, memory: str, workload: Workload = SERVING) -> Program:
    """A model of about 8 MiB at 16 bits on CPUs of the own runtime."""
    program = quad(workload, engine="local")
    cluster = Cluster.from_yaml(ALIKE % (count, memory), "alike.yaml")
    request = replace(program.request, cluster=cluster, target=Target(0.0, explicit=True))
    return joint_plan(with_costs(replace(program, request=request, costs=None)))


@pytest.mark.parametrize(("count", "memory", "times"), [(1, "64 MiB", 1), (3, "64 MiB", 3), (4, "7 MiB", 2), (2, "7 MiB", 1)])
def test_sets_of_devices_that_hold_the_model_are_counted(count: int, memory: str, times: int) -> None:
    program = planned(count, memory)
    plan = program.require("plan")
    assert times_it_fits(program, plan) == times
    told = f"the cluster holds the model {times} times: try --replicas {times}"
    assert replica_hint(program, plan) == (told if times > 1 else None)


def test_a_batch_is_told_nothing() -> None:
    program = planned(3, "64 MiB", Batch(4, 16, 8))
    assert times_it_fits(program, program.require("plan")) == 3
    assert replica_hint(program, program.require("plan")) is None


def test_no_more_replicas_are_named_than_a_plan_may_have() -> None:
    program = planned(12, "64 MiB")
    assert replica_hint(program, program.require("plan")) == "the cluster holds the model 8 times: try --replicas 8"


def test_a_plan_of_several_pipelines_needs_no_hint() -> None:
    program = planned(3, "64 MiB")
    several = joint_plan(replace(program, plan=None, notices=(), request=replace(program.request, replicas=3)))
    assert len(several.require("plan").pipelines) == 3
    assert replica_hint(several, several.require("plan")) is None


def test_the_command_line_prints_it(cli: CommandLine) -> None:
    words = ("plan", "demo", "-c", "3xCPU", "--rate", "1", "--prompt-len", "64", "--gen-len", "32", "--indicator", "prior")
    assert "replicas        the cluster holds the model 3 times: try --replicas 3" in cli(*words).out
