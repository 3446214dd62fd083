"""The verifier catches each contradiction of a plan, one mutation at a time."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from llmpq.errors import VerifyError
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Optimality, Plan, Stage
from llmpq.precision import parse_precisions
from llmpq.program import Program, Target
from llmpq.solver.rules import parse_rules
from llmpq.verify import plan_problems, verify_program
from llmpq.workload import Batch
from tests.values import program, two_cpus

Mutation = Callable[[Plan], Plan]


@pytest.fixture(scope="module")
def good() -> Program:
    """Two stages, by a rule."""
    plain = program(target=Target(budget=1.0, explicit=True))
    plain = replace(plain, request=replace(plain.request, rules=parse_rules(("layers[1].device != layers[2].device",))))
    passes = parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior},assign-joint")
    planned = run_passes(plain, passes)
    assert len(planned.require("plan").stages) == 2
    return planned


def stages(plan: Plan, *changed: Stage) -> Plan:
    return replace(plan, pipelines=(replace(plan.pipeline, stages=changed),))


def sizes(prefill: int, decode: int) -> Mutation:
    return lambda plan: replace(plan, pipelines=(replace(plan.pipeline, prefill_micro_batch=prefill, decode_micro_batch=decode),))


def memory(**changed: int) -> Mutation:
    def mutate(plan: Plan) -> Plan:
        first, *others = plan.prediction.memory
        changed_first = replace(first, **changed)  # type: ignore[arg-type]  # any number
        return replace(plan, prediction=replace(plan.prediction, memory=(changed_first, *others)))

    return mutate


def stage(number: int, **changed: object) -> Mutation:
    def mutate(plan: Plan) -> Plan:
        all_stages = list(plan.stages)
        all_stages[number] = replace(all_stages[number], **changed)  # type: ignore[arg-type]  # any field
        return stages(plan, *all_stages)

    return mutate


def optimality(objective: float | None = None, bound: float | None = 0.0, proven: bool = False) -> Mutation:
    return lambda plan: replace(
        plan, optimality=Optimality(objective or plan.optimality.objective, bound, proven, plan.optimality.solver)
    )


MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "a layer twice": (stage(1, first_layer=0), "each of 0..3 once and in order"),
    "a model of more layers": (
        lambda plan: replace(stages(plan, plan.stages[0]), model="other"),
        "is of other and places 2 layers; tiny has 4",
    ),
    "a layer missing": (lambda plan: stages(plan, plan.stages[0]), "each of 0..3 once and in order"),
    "stages out of order": (lambda plan: stages(plan, *plan.stages[::-1]), "each of 0..3 once and in order"),
    "an unknown device": (stage(0, device="T4:7"), "'T4:7' is not in the cluster"),
    "one device for two stages": (lambda plan: stage(0, device=plan.stages[1].device)(plan), "more than one stage"),
    "an empty stage": (
        lambda plan: stages(plan, Stage(plan.stages[0].device, 0, ()), Stage(plan.stages[1].device, 0, plan.options)),
        "holds no layer",
    ),
    "an unknown option": (
        lambda plan: stage(0, options=("w5a5",) * len(plan.stages[0].options))(plan),
        "option 'w5a5' is unknown",
    ),
    "an option not asked for": (
        lambda plan: stage(0, options=("w8a8",) * len(plan.stages[0].options))(plan),
        "option 'w8a8' was not asked for",
    ),
    "micro-batches that do not divide": (sizes(3, 8), "prefill micro-batch 3 does not divide decode micro-batch 8"),
    "prefill above decode": (sizes(8, 4), "micro-batches of 8"),
    "a micro-batch of nothing": (sizes(0, 4), "micro-batches of 0"),
    "a micro-batch above the batch": (sizes(16, 16), "of a batch of 8"),
    "too much memory": (memory(weights=10**9), "and has"),
    "a negative term": (memory(head=-1), "negative term of memory"),
    "another capacity": (memory(capacity=10**12), "the cluster"),
    "memory of another device": (
        lambda plan: replace(plan, prediction=replace(plan.prediction, memory=plan.prediction.memory[::-1])),
        "not of each stage's device in order",
    ),
    "memory left out": (
        lambda plan: replace(plan, prediction=replace(plan.prediction, memory=plan.prediction.memory[:1])),
        "not of each stage's device in order",
    ),
    "another model": (lambda plan: replace(plan, model="other"), "another model, workload or cluster"),
    "another workload": (lambda plan: replace(plan, workload=Batch(8, 64, 33)), "another model, workload or cluster"),
    "another cluster": (lambda plan: replace(plan, cluster=two_cpus(second="32 MiB")), "another model, workload or cluster"),
    "a budget that is exceeded": (
        lambda plan: replace(plan, quality=replace(plan.quality, budget=plan.quality.sensitivity / 2 - 1e-9)),
        "exceeds the budget",
    ),
    "another sensitivity than the table's": (
        lambda plan: replace(plan, quality=replace(plan.quality, sensitivity=plan.quality.sensitivity + 0.01)),
        "its table adds up to",
    ),
    "negative seconds": (
        lambda plan: replace(plan, prediction=replace(plan.prediction, prefill_s=-1.0)),
        "predicted seconds are -1.0",
    ),
    "another objective": (optimality(objective=1e6), "prediction and quality add up to"),
    "a bound above the objective": (
        lambda plan: optimality(bound=plan.optimality.objective * 2)(plan),
        "is above the objective",
    ),
    "a proof without a bound": (optimality(bound=None, proven=True), "claims to be proven and has no bound"),
}


def test_a_plan_of_the_planner_has_no_problems(good: Program) -> None:
    verify_program(good, after="assign-joint")


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_the_verifier_catches(good: Program, name: str) -> None:
    mutate, message = MUTATIONS[name]
    found = plan_problems(mutate(good.require("plan")), good)
    assert any(message in problem for problem in found), found


def test_a_rule_that_the_plan_breaks_is_named(good: Program) -> None:
    strict = replace(good, request=replace(good.request, rules=parse_rules(("count(16) >= 99", "layers[0].bits <= 16"))))
    assert plan_problems(good.require("plan"), strict) == ["constraint 'count(16) >= 99' is broken"]


def test_an_option_that_the_engine_cannot_run_is_named() -> None:
    plain = program(cluster=Cluster.load("1xV100-32"), precisions="16", target=Target(budget=None))
    passes = parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior},assign-joint")
    planned = run_passes(plain, passes)
    elsewhere = replace(planned, request=replace(planned.request, engine="vllm"))
    assert plan_problems(planned.require("plan"), elsewhere) == ["16 is unsupported on V100-32:0 by engine vllm"]


def test_the_error_names_the_pass_and_every_problem(good: Program) -> None:
    broken = replace(good, plan=replace(good.require("plan"), model="other"))
    with pytest.raises(VerifyError, match="after pass assign-joint: the plan is of another model"):
        verify_program(broken, after="assign-joint")


def test_a_sensitivity_table_of_another_shape_is_caught(good: Program) -> None:
    table = good.require("sensitivity")
    with pytest.raises(VerifyError, match="sensitivity has 3 rows for 4 layers"):
        verify_program(replace(good, sensitivity=replace(table, rows=table.rows[:3]), plan=None), after="x")
    fewer = replace(good.request, precisions=parse_precisions("16"))
    with pytest.raises(VerifyError, match="sensitivity is of 16, w8a16, w4a16, the request of 16"):
        verify_program(replace(good, request=fewer, plan=None), after="x")


def test_stage_modules_that_do_not_match_the_plan_are_caught(good: Program) -> None:
    with pytest.raises(VerifyError, match="0 stage modules for 2 stages"):
        verify_program(replace(good, stages=()), after="split-by-stage")
