"""Explanations: stage times make up the prediction, prices and next-best choices are those of planning from scratch."""

import json
from dataclasses import replace
from math import isclose, log1p
from pathlib import Path

import pytest

from llmpq.answers.explanation import Explanation, explain
from llmpq.answers.layers import LayerAnswer
from llmpq.answers.prices import Price
from llmpq.answers.stage_bounds import PhaseBound, stage_bounds
from llmpq.answers.subject import Subject, program_of
from llmpq.errors import ClusterError, InputError
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.program import Program, Target
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import dumps, loads
from llmpq.solver.problem import Assignment, evaluate
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch, Serving
from tests.command_line import CLUSTER, PLANNED
from tests.conftest import CommandLine
from tests.values import llama_graph, program, two_cpus

PIPELINE = "derive-costs,estimate-sensitivity{indicator=prior},assign-joint{gap=1e-5}"


def planned(
    memory: str = "1400 KiB", rules: tuple[str, ...] = (), budget: float = 0.02, cluster: Cluster | None = None
) -> Program:
    """A plan that memory keeps from its best, on two unlike CPUs."""
    target = Target(budget, explicit=True)
    plain = program(llama_graph(6, tied=False), cluster or two_cpus(memory, memory), Batch(4, 32, 16), target=target)
    request = replace(plain.request, rules=parse_rules(rules))
    return run_passes(replace(plain, request=request), parse_pipeline(PIPELINE))


def from_scratch(ready: Program, **changed: object) -> Plan:
    """The plan of a changed request by all passes."""
    bare = replace(ready, costs=None, plan=None, request=replace(ready.request, **changed))  # type: ignore[arg-type]
    plan: Plan = run_passes(bare, parse_pipeline(PIPELINE)).require("plan")
    return plan


@pytest.fixture(scope="module")
def tight() -> Program:
    return planned()


@pytest.fixture(scope="module")
def explained(tight: Program) -> Explanation:
    return explain(tight)


def price(found: Explanation, kind: str, device: str = "") -> Price:
    return next(item for item in found.prices if (item.kind, item.device) == (kind, device))


def test_stage_times_make_up_the_predicted_seconds(tight: Program) -> None:
    plan, subject = tight.require("plan"), Subject.of(tight)
    stages, problem = stage_bounds(subject), subject.problem
    prefill = [stage.prefill.total_s for stage in stages if stage.prefill is not None]
    decode = [stage.decode.total_s for stage in stages]
    assert isclose(sum(prefill) + (problem.prefill_micro_batches - 1) * max(prefill), plan.prediction.prefill_s)
    trip = max(sum(decode), problem.decode_micro_batches * max(decode))
    assert isclose((plan.workload.gen_len - 1) * trip, plan.prediction.decode_s)


def test_stage_times_of_serving_make_up_the_time_per_token() -> None:
    plain = program(llama_graph(6), two_cpus(), precisions="16,w4a16")
    request = replace(plain.request, workload=Serving(1.0, 32, 16))
    ready = run_passes(replace(plain, request=request), parse_pipeline(PIPELINE))
    stages = stage_bounds(Subject.of(ready))
    decode = [stage.decode.total_s for stage in stages]
    assert [stage.prefill for stage in stages] == [None] * len(stages)
    assert isclose(max(sum(decode), len(stages) * max(decode)), ready.require("plan").load.tpot_s)


def test_a_phase_is_bound_by_its_longest_part() -> None:
    assert PhaseBound(1.0, 0.1, 0.6, 0.2, 0.1).bound == "compute"
    assert PhaseBound(1.0, 0.1, 0.2, 0.6, 0.1).bound == "bandwidth"
    assert PhaseBound(1.0, 0.1, 0.1, 0.2, 0.6).bound == "overhead"
    assert PhaseBound(1.0, 1.1, 0.6, 0.2, 0.1).bound == "link"


def test_the_price_of_memory_is_what_planning_with_more_of_it_saves(tight: Program, explained: Explanation) -> None:
    plan = tight.require("plan")
    for index, device in enumerate(tight.request.cluster.devices):
        more = replace(device, memory_bytes=device.memory_bytes + int(0.1 * device.capacity_bytes))
        devices = tight.request.cluster.devices
        cluster = replace(tight.request.cluster, devices=(*devices[:index], more, *devices[index + 1 :]))
        saved = plan.optimality.objective - from_scratch(tight, cluster=cluster).optimality.objective
        found = price(explained, "memory", device.name)
        assert found.saved_s == pytest.approx(saved, abs=3e-4 * plan.optimality.objective)
    assert "memory" in explained.bound_by


def test_the_price_of_loss_is_what_planning_with_a_larger_budget_saves() -> None:
    ready = planned(budget=0.008)
    found, target = price(explain(ready), "quality"), Target(0.008 + log1p(1e-3), explicit=True)
    objective = ready.require("plan").optimality.objective
    saved = objective - from_scratch(ready, target=target).optimality.objective
    assert found.saved_s == pytest.approx(saved, abs=3e-4 * objective)


def test_the_price_of_a_rule_is_what_planning_without_it_saves() -> None:
    ready = planned("64 MiB", ("layers[0:5].device == 'CPU:1'",))
    objective = ready.require("plan").optimality.objective
    found = price(explain(ready), "rule")
    saved = objective - from_scratch(ready, rules=()).optimality.objective
    assert found.saved_s == pytest.approx(saved, abs=3e-4 * objective) and found.binds
    assert "rule" in explain(ready).bound_by


def test_more_speed_never_costs(explained: Explanation) -> None:
    assert all(item.saved_s is not None and item.saved_s >= 0 and item.proven for item in explained.prices)
    assert [item.saved_s for item in explained.prices] == sorted((item.saved_s or 0.0 for item in explained.prices), reverse=True)


def test_more_of_one_thing_buys_no_more_than_more_of_all(explained: Explanation) -> None:
    for device in ("CPU:0", "CPU:1"):
        whole = price(explained, "speed", device).saved_s or 0.0
        assert all((price(explained, kind, device).saved_s or 0.0) <= whole * 1.01 for kind in ("bandwidth", "compute"))


def test_bandwidth_and_arithmetic_of_a_measured_type_have_no_prices_of_their_own() -> None:
    found = explain(planned(cluster=Cluster.load("1xA100-40")))
    assert {item.kind for item in found.prices} == {"memory", "speed", "quality"}
    assert found.bound_by[0] == "speed"


def test_alternatives_of_a_layer_are_told_with_what_they_break(tight: Program) -> None:
    subject = Subject.of(tight)
    for layer in range(6):
        answer = explain(tight, layer=layer).layer
        assert answer is not None and answer.option == subject.plan.options[layer]
        for other in answer.alternatives:
            device, option = subject.problem.devices.index(other.device), subject.problem.options.index(other.option)
            place, chosen = list(subject.assignment.device), list(subject.assignment.option)
            place[layer], chosen[layer] = device, option
            after = evaluate(subject.problem, Assignment(tuple(place), tuple(chosen)))
            assert bool(other.against) == bool(after.violations)
            assert other.seconds == pytest.approx(after.objective - subject.evaluation.objective)


def test_the_next_best_choice_is_what_planning_under_one_rule_more_finds(tight: Program) -> None:
    answer = explain(tight, layer=5).layer
    assert isinstance(answer, LayerAnswer)
    for other in answer.next_best:
        plan = from_scratch(tight, rules=parse_rules((other.without,)))
        extra = plan.optimality.objective - tight.require("plan").optimality.objective
        assert other.seconds == pytest.approx(extra, abs=3e-4 * plan.optimality.objective)
        assert (other.device, other.option) != (answer.device, answer.option)


def test_a_device_that_is_idle_says_what_using_it_costs() -> None:
    ready = planned("64 MiB")
    assert [stage.device for stage in ready.require("plan").stages] == ["CPU:0"]
    found = explain(ready, device="cpu:1")
    forced = from_scratch(ready, rules=parse_rules(("device('CPU:1').layers >= 1",)))
    extra = forced.optimality.objective - ready.require("plan").optimality.objective
    assert [item.device for item in found.idle] == ["CPU:1"] and found.stages == ()
    assert found.idle[0].seconds == pytest.approx(extra, rel=1e-3)
    assert {item.device for item in found.prices} == {"CPU:1"}


def test_the_program_of_a_plan_that_was_read_back_costs_the_same(tight: Program) -> None:
    plan = loads(Plan, dumps(tight.require("plan")))
    again = program_of(tight.graph, plan)
    assert again.notices == () and again.costs == tight.costs and again.sensitivity == tight.sensitivity
    assert isclose(Subject.of(again).evaluation.objective, plan.optimality.objective)


def test_other_costs_and_another_sensitivity_are_said(tight: Program) -> None:
    plan: Plan = tight.require("plan")
    other = replace(plan, optimality=replace(plan.optimality, objective=2 * plan.optimality.objective))
    table: SensitivityTable = tight.require("sensitivity")
    found = program_of(tight.graph, other, replace(table, provenance="a text"))
    assert "answers are by today's costs" in found.notices[0] and "answers are by a text" in found.notices[1]


def test_unknown_layers_and_devices_are_refused(tight: Program) -> None:
    with pytest.raises(InputError, match="layer 6 is not in tiny; it has layers 0 to 5"):
        explain(tight, layer=6)
    with pytest.raises(ClusterError, match="has no device 'T4:0'"):
        explain(tight, device="T4:0")
    with pytest.raises(InputError, match="ask about one of them"):
        explain(tight, layer=0, device="CPU:0")


def test_the_command_explains_a_plan_and_a_compiled_model_alike(cli: CommandLine, tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(cli("plan", "demo", *PLANNED, "--json").out)
    cli("compile", "demo", *PLANNED, "--no-quality-check", "-o", tmp_path / "out")
    first, second = (cli("explain", path) for path in (plan_file, tmp_path / "out"))
    assert (first.code, first.out) == (0, second.out)
    assert "what would buy what" in first.out and first.err == second.err == ""
    layer = json.loads(cli("explain", plan_file, "--layer", 0, "--json").out)
    assert layer["layer"]["layer"] == 0 and layer["layer"]["next_best"]


def test_what_is_no_plan_is_refused_in_one_line(cli: CommandLine, tmp_path: Path) -> None:
    missing = cli("explain", tmp_path / "none.json")
    assert missing.code == 2 and "no such file, expected a plan" in missing.err and missing.err.count("\n") == 1
    path = tmp_path / "bad.json"
    path.write_text('{"plan": null}')
    assert "holds no plan, its request was infeasible" in cli("explain", path).err
    assert CLUSTER.is_file() and "not JSON" in cli("explain", CLUSTER).err
