"""The comparison: every baseline, the infeasible ones with their reason, replicas that share out a batch."""

import json
from dataclasses import replace

import pytest

from llmpq.comparison import compare
from llmpq.errors import InfeasibleError
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import PASSES, parse_pipeline, run_passes
from llmpq.planning.baselines import fastest_alone
from llmpq.planning.replicas import replicas
from llmpq.program import Program
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch
from tests.command_line import CLUSTER
from tests.conftest import CommandLine
from tests.values import llama_graph, program, two_cpus

TWINS = """
name: twins
devices:
  - {type: CPU, memory: 64 MiB, speed: 0.5, count: 2, host: a}
"""


def ready(cluster: Cluster | None = None) -> Program:
    plain = program(llama_graph(tied=False), cluster or two_cpus(), Batch(8, 64, 32))
    return run_passes(plain, parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior}"))


def test_every_baseline_is_compared_and_the_joint_plan_is_never_slower_within_the_budget() -> None:
    rows = {row.name: row for row in compare(ready(two_cpus("1500 KiB", "1200 KiB")))}
    assert set(rows) == {
        name.removeprefix("assign-") for name in PASSES if "assign-" in name and name not in ("assign-robust", "assign-given")
    } | {"replicas"}
    joint = rows["joint"]
    assert joint.tokens_per_s is not None
    for row in rows.values():
        assert (row.tokens_per_s is None) == (row.reason is not None)
        if row.name != "replicas" and row.kept and row.tokens_per_s is not None:
            assert row.tokens_per_s <= joint.tokens_per_s * 1.002
    assert rows["fastest"].reason is not None and "short" in rows["fastest"].reason


def test_two_equal_devices_take_half_of_the_batch_each() -> None:
    found = replicas(ready(Cluster.from_yaml(TWINS, "twins.yaml")))
    assert found.shares in ((4, 4), (8,))
    assert found.tokens_per_s == pytest.approx(8 * 32 / found.latency_s)


def test_replicas_are_never_slower_than_the_fastest_device_alone() -> None:
    base = ready()
    assert replicas(base).latency_s <= fastest_alone(base).found.objective * (1 + 1e-9)


def test_without_a_device_that_holds_the_model_there_are_no_replicas() -> None:
    with pytest.raises(InfeasibleError, match="no device can run the model alone"):
        replicas(ready(two_cpus("600 KiB", "600 KiB")))


def test_rules_speak_of_one_pipeline_and_admit_no_replicas() -> None:
    base = ready()
    with pytest.raises(InfeasibleError, match="under constraints"):
        replicas(replace(base, request=replace(base.request, rules=parse_rules(("count(16) >= 1",)))))


ARGUMENTS = ("plan", "demo", "-c", CLUSTER, "--batch-size", "8", "--prompt-len", "64", "--gen-len", "32", "--indicator", "prior")


def test_plan_answers_all_that_it_is_asked(cli: CommandLine) -> None:
    outcome = cli(*ARGUMENTS, "--compare", "--explain-memory", "--robust", "1.2")
    assert outcome.code == 0
    for said in ("memory, term by term", "kv cache", "pipeedge", "transfer", "replicas", "robustness", "worst"):
        assert said in outcome.out, said


def test_the_answers_as_json_add_up(cli: CommandLine) -> None:
    answer = json.loads(cli(*ARGUMENTS, "--compare", "--explain-memory", "--json").out)
    assert {row["name"] for row in answer["comparison"]} >= {"joint", "hand", "adabits"}
    assert answer["robustness"] is None
    for entry in answer["memory"]:
        terms = (entry[term] for term in ("weights", "kv_cache", "activations", "embedding", "head"))
        assert 0 < sum(terms) <= entry["capacity"]


def test_minimising_regret_and_naming_an_assignment_exclude_each_other(cli: CommandLine) -> None:
    outcome = cli(*ARGUMENTS, "--minimise-regret", "--assign", "assign-even")
    assert outcome.code == 2
    assert "leave out --assign assign-even" in outcome.err
