"""Plans that are given: taken as they stand, held to the request, scored anew."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmpq
from llmpq.answers.plan_file import load_plan, options_of, save_plan
from llmpq.compiler import plan as plan_program
from llmpq.errors import InfeasibleError, InputError
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan
from llmpq.workload import Workload
from tests.command_line import CLUSTER
from tests.conftest import CommandLine

BATCH = llmpq.Batch(8, 64, 32)


def made(workload: Workload = BATCH, cluster: Cluster | str | Path = CLUSTER, **options: Any) -> Plan:
    found: Plan = plan_program("demo", cluster, workload, indicator="prior", **options).require("plan")
    return found


def given(plan: Plan, folder: Path, **options: Any) -> Plan:
    """The plan written down, and planned from the file alone."""
    path = save_plan(plan, folder / 'a "plan".json')
    assert load_plan(path) == plan
    return made(plan.workload, plan.cluster, **options_of(plan, path), **options)


def with_option(plan: Plan, layer: int, option: str) -> Plan:
    stages = tuple(
        replace(stage, options=tuple(option if i == layer else old for i, old in zip(stage.layers, stage.options)))
        for stage in plan.stages
    )
    return replace(plan, pipelines=(replace(plan.pipeline, stages=stages),))


@pytest.mark.parametrize("workload", [BATCH, llmpq.Serving(0.5, 64, 32)], ids=["batch", "serving"])
def test_a_plan_that_is_given_back_is_the_same_but_for_who_found_it(workload: Workload, tmp_path: Path) -> None:
    plan = made(workload, "2xCPU")
    again = given(plan, tmp_path)
    assert replace(again, optimality=plan.optimality) == plan
    assert again.optimality.objective == pytest.approx(plan.optimality.objective)
    assert (again.optimality.solver, again.optimality.bound) == ("assign-given", None)


def test_what_an_edited_plan_predicts_is_derived_anew(tmp_path: Path) -> None:
    plan = made()
    layer = plan.options.index("w8a16")
    changed = given(with_option(plan, layer, "w4a16"), tmp_path)
    assert changed.options[layer] == "w4a16" and changed.quality.sensitivity > plan.quality.sensitivity
    assert sum(m.weights for m in changed.prediction.memory) < sum(m.weights for m in plan.prediction.memory)


def test_a_default_quality_target_that_is_broken_is_told_and_an_explicit_one_refuses(tmp_path: Path) -> None:
    plan = made()
    for layer in range(12):
        plan = with_option(plan, layer, "w4a16")
    path = save_plan(plan, tmp_path / "plan.json")
    options: dict[str, Any] = {**options_of(plan, path), "indicator": "prior"}
    program = plan_program("demo", CLUSTER, BATCH, **options)
    assert set(program.require("plan").options) == {"w4a16"}
    assert any("breaks the default quality target: it costs 0.046" in text for text in program.notices)
    with pytest.raises(InfeasibleError, match=r"it costs 0.046 nats per token, the budget is 0.01"):
        plan_program("demo", CLUSTER, BATCH, sensitivity_budget=0.01, **options)


def test_what_does_not_fit_is_told_by_device(tmp_path: Path) -> None:
    plan = made()
    for layer in range(12):
        plan = with_option(plan, layer, "16")
    with pytest.raises(InfeasibleError, match=r"plan\".json: CPU:\d is \d.* short"):
        given(plan, tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"first_layer": 0', '"first_layer": 1', r"the stages hold layers \[1, .* once and in order"),
        ('"device": "CPU:1"', '"device": "CPU:7"', "stage device 'CPU:7' is not in the cluster"),
        ('"w4a16"', '"w5a16"', "precision 'w5a16' is unknown"),
        ('"decode_micro_batch": 8', '"decode_micro_batch": 9', "micro-batches are prefill .*, decode 9; expected"),
    ],
)
def test_a_slip_in_the_file_is_named(before: str, after: str, message: str, tmp_path: Path) -> None:
    path = save_plan(made(), tmp_path / "plan.json")
    text = path.read_text()
    head, pipelines = text.split('"pipelines"')
    assert before in pipelines
    path.write_text(head + '"pipelines"' + pipelines.replace(before, after, 1))
    plan = load_plan(path)
    with pytest.raises(InputError, match=message):
        made(BATCH, plan.cluster, **options_of(plan, path))


def test_the_command_line_carries_a_plan_out(cli: CommandLine, tmp_path: Path) -> None:
    plan = made()
    path = save_plan(with_option(plan, plan.options.index("w8a16"), "w4a16"), tmp_path / "plan.json")
    words = ("compile", "demo", "--plan", path, "--indicator", "prior", "--quantizer", "rtn", "--no-quality-check", "--json")
    done = cli(*words, "-o", tmp_path / "out")
    assert done.code == 0 and done.err.count("\n") == 1 and "breaks the default quality target: it costs 0.0231" in done.err
    carried = load_plan(tmp_path / "out")
    assert carried.options == load_plan(path).options and json.loads(done.out)["optimality"]["solver"] == "assign-given"
    both = cli(*words, "--cluster", "2xCPU", "--batch-size", 4, "-o", tmp_path / "other")
    assert both.code == 2 and "says what --cluster/-c, --batch-size would; leave them out, or edit the plan" in both.err
    assert not (tmp_path / "other").exists()
