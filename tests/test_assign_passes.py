"""The assignment passes: the joint plan beside its baselines, budgets and what happens when they cannot be met."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmpq.errors import InfeasibleError
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning.baselines import only_option
from llmpq.planning.candidates import Candidate, build_problem, candidate_groups
from llmpq.planning.fit import without_seconds
from llmpq.planning.reasons import roomiest
from llmpq.program import Program, Target
from llmpq.solver.problem import Assignment, evaluate
from llmpq.solver.rules import parse_rules
from llmpq.verify import broken_rules
from llmpq.workload import Batch
from tests.random_programs import GAP, enumerate_plans, random_program
from tests.values import llama_graph, program, two_cpus

SEEDS = st.integers(0, 10**6)
UNLIMITED = Target(budget=None)
BASELINES = (
    "assign-even",
    "assign-hand",
    "assign-fastest",
    "assign-uniform",
    "assign-pipeedge",
    "assign-adabits",
    "assign-transfer",
)
EVERY_ASSIGNMENT = ("assign-joint", *BASELINES)


def assign(ready: Program, name: str) -> Program:
    return run_passes(ready, parse_pipeline(name))


def objective(ready: Program, name: str) -> float | None:
    try:
        plan: Plan = assign(ready, name).require("plan")
    except InfeasibleError:
        return None
    return plan.optimality.objective


def planned(plain: Program) -> Program:
    return run_passes(plain, parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior}"))


def explicit(seed: int) -> Program:
    ready = random_program(seed)
    return replace(ready, request=replace(ready.request, target=replace(ready.request.target, explicit=True)))


def seeds_that_fit() -> Iterator[Program]:
    return (ready for seed in range(1000) if next(enumerate_plans(ready := random_program(seed, UNLIMITED), None), None))


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_the_joint_plan_is_never_worse_than_a_feasible_baseline(seed: int) -> None:
    ready = explicit(seed)
    joint = objective(ready, "assign-joint")
    for name in BASELINES:
        baseline = objective(ready, name)
        if baseline is not None:
            assert joint is not None, name
            assert joint <= baseline * (1 + GAP), name


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_hand_is_the_best_of_all_uniform_plans(seed: int) -> None:
    ready = explicit(seed)
    plans = enumerate_plans(ready, ready.request.target.budget)
    uniform = [evaluation.objective for _, assignment, evaluation in plans if len(set(assignment.option)) == 1]
    found = objective(ready, "assign-hand")
    assert (found is None) == (not uniform)
    if found is not None:
        assert min(uniform) * (1 - 1e-9) <= found <= min(uniform) * (1 + 2 * GAP)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_fastest_is_the_best_of_all_plans_on_one_device(seed: int) -> None:
    ready = explicit(seed)
    plans = enumerate_plans(ready, ready.request.target.budget)
    alone = [evaluation.objective for candidate, _, evaluation in plans if len(candidate.order) == 1]
    found = objective(ready, "assign-fastest")
    assert (found is None) == (not alone)
    if found is not None:
        assert min(alone) * (1 - 1e-9) <= found <= min(alone) * (1 + 2 * GAP)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_even_shares_layers_in_cluster_order_at_the_most_faithful_precision_that_fits(seed: int) -> None:
    ready = explicit(seed)
    devices, layers = len(ready.request.cluster.devices), ready.graph.num_layers
    assume(layers >= devices)
    shares = tuple(i * devices // layers for i in range(layers))
    even = [
        (evaluation.sensitivity, evaluation.objective)
        for candidate, assignment, evaluation in enumerate_plans(ready, None)
        if candidate.order == tuple(range(devices)) and assignment.device == shares and len(set(assignment.option)) == 1
    ]
    budget = ready.request.target.budget
    found = objective(ready, "assign-even")
    expected = min(even, default=None)
    if expected is None or (budget is not None and expected[0] > budget):
        assert found is None
    else:
        assert found == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize("name", EVERY_ASSIGNMENT)
def test_a_plan_keeps_budget_and_rules_and_a_baseline_claims_no_bound(name: str) -> None:
    kept = 0
    for seed in range(24):
        ready = explicit(seed)
        try:
            result = assign(ready, name)  # verifies budget, memory, rules and support as well
        except InfeasibleError as error:
            assert error.reasons
            continue
        kept += bool(ready.request.rules)
        plan: Plan = result.require("plan")
        assert broken_rules(plan, result) == ()
        assert plan.quality.budget == ready.request.target.budget
        assert (plan.optimality.bound is None) == (name != "assign-joint")
        assert plan.optimality.solver == ("exact search" if name == "assign-joint" else name)
    assert kept


def least_sensitivity(ready: Program, uniform: bool = False) -> float:
    return min(
        evaluation.sensitivity
        for _, assignment, evaluation in enumerate_plans(ready, None)
        if not uniform or len(set(assignment.option)) == 1
    )


@pytest.mark.parametrize("name", ["assign-joint", "assign-hand"])
def test_a_default_budget_that_cannot_be_met_gives_the_least_sensitive_plan_with_a_notice(name: str) -> None:
    met = 0
    for ready, _ in zip(seeds_that_fit(), range(12)):
        try:
            least = least_sensitivity(ready, uniform=name == "assign-hand")
        except ValueError:
            continue
        strict = replace(ready, request=replace(ready.request, target=Target(budget=least * 0.9)))
        if least == 0:
            continue
        met += 1
        result = assign(strict, name)
        plan: Plan = result.require("plan")
        assert least * (1 - 1e-9) <= plan.quality.sensitivity <= least * 1.001
        assert plan.quality.budget == pytest.approx(least, rel=1.001e-3)
        assert "cannot be met on this cluster; this is the plan of least sensitivity that fits" in result.notices[0]
        demanded = replace(strict, request=replace(strict.request, target=Target(least * 0.9, explicit=True)))
        with pytest.raises(InfeasibleError):
            assign(demanded, name)
    assert met >= 3


def test_among_the_least_sensitive_plans_the_fastest_is_taken() -> None:
    for ready, _ in zip(seeds_that_fit(), range(8)):
        least = least_sensitivity(ready)
        strict = replace(ready, request=replace(ready.request, target=Target(budget=least * 0.9)))
        plan: Plan = assign(strict, "assign-joint").require("plan")
        plans = [e for _, _, e in enumerate_plans(ready, None) if e.sensitivity <= least * 1.0005]
        assert plan.optimality.objective <= min(e.objective for e in plans) * (1 + 2 * GAP)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_no_other_sizes_leave_more_room_than_the_roomiest(seed: int) -> None:
    ready = random_program(seed, UNLIMITED)
    groups = candidate_groups(ready)
    kept = roomiest(ready, groups)
    assert kept
    for group in groups:
        problem = build_problem(ready, group.candidate(), None)
        alike = [other for other in kept if (other.devices, other.options) == (group.devices, group.options)]
        roomier = [build_problem(ready, other.candidate(), None) for other in alike]
        assert any(
            all(a >= b for a, b in zip(other.capacity_bytes, problem.capacity_bytes))
            and other.last_stage.bytes[0] <= problem.last_stage.bytes[0]
            for other in roomier
        )


def test_without_seconds_the_objective_is_the_sum_of_sensitivity() -> None:
    ready = random_program(7, UNLIMITED)
    problem = build_problem(ready, Candidate((0, 1), 2, 2), 0.5)
    bare = without_seconds(problem)
    largest = max(value for row in problem.sensitivity for value in row)
    for option in range(2):
        assignment = Assignment((0,) * problem.num_layers, (option,) * problem.num_layers)
        expected = evaluate(problem, assignment).sensitivity / largest
        assert evaluate(bare, assignment).objective == pytest.approx(expected)
    assert bare.layer_bytes == problem.layer_bytes
    assert bare.sensitivity_budget is None


def test_a_problem_of_only_one_option_supports_no_other() -> None:
    problem = only_option(build_problem(random_program(1, UNLIMITED), Candidate((0, 1), 2, 2), None), 1)
    assert {problem.supported(k, j) for k in range(problem.num_kinds) for j in range(2)} == {(1,)}


def too_small() -> Program:
    return planned(program(cluster=two_cpus("300 KiB", "300 KiB")))


@pytest.mark.parametrize("name", EVERY_ASSIGNMENT)
def test_a_cluster_that_is_too_small_is_told_with_devices_and_bytes(name: str) -> None:
    with pytest.raises(InfeasibleError, match=r"CPU:\d is [\d.]+ [KM]iB short"):
        assign(too_small(), name)


def test_more_memory_by_the_bytes_short_is_enough() -> None:
    ready = planned(program(cluster=two_cpus("440 KiB", "390 KiB"), target=UNLIMITED, workload=Batch(4, 16, 8)))
    with pytest.raises(InfeasibleError) as caught:
        assign(ready, "assign-joint")
    short = {name: float(size) for name, size in re.findall(r"(CPU:\d) is ([\d.]+) KiB short", str(caught.value))}
    assert short
    given = [440 + short.get("CPU:0", 0) + 1, 390 + short.get("CPU:1", 0) + 1]
    larger = two_cpus(*(f"{size} KiB" for size in given))
    enough = planned(program(cluster=larger, target=UNLIMITED, workload=Batch(4, 16, 8)))
    assert assign(enough, "assign-joint").require("plan")


@pytest.mark.parametrize("name", EVERY_ASSIGNMENT)
def test_rules_that_contradict_each_other_are_named(name: str) -> None:
    ready = planned(program(target=UNLIMITED))
    rules = parse_rules(("count(16) >= 3", "count(w4a16) >= 3"))
    with pytest.raises(InfeasibleError) as caught:
        assign(replace(ready, request=replace(ready.request, rules=rules)), name)
    if name in ("assign-joint", "assign-fastest"):
        assert "count(16) >= 3" in str(caught.value)
        assert "count(w4a16) >= 3" in str(caught.value)


def test_a_rule_that_an_even_split_breaks_is_named() -> None:
    ready = planned(program(target=UNLIMITED))
    rules = parse_rules(("device('CPU:0').layers <= 1",))
    with pytest.raises(InfeasibleError, match=re.escape("device('CPU:0').layers <= 1")):
        assign(replace(ready, request=replace(ready.request, rules=rules)), "assign-even")


def test_an_even_split_needs_a_layer_for_each_device() -> None:
    ready = planned(program(graph=llama_graph(num_layers=1), target=UNLIMITED))
    with pytest.raises(InfeasibleError, match="a layer for each of 2 devices, and the model has 1"):
        assign(ready, "assign-even")


def test_an_explicit_budget_that_a_baseline_breaks_is_told_with_figures() -> None:
    target = Target(budget=1e-6, explicit=True)
    ready = planned(program(target=target, precisions="w8a16,w4a16"))
    for name in ("assign-even", "assign-hand"):
        with pytest.raises(InfeasibleError, match=r"w8a16 costs 0\.0005 nats per token, the budget is 1e-06"):
            assign(ready, name)


def test_options_of_the_pass_override_the_request() -> None:
    ready = planned(program())
    loose = assign(ready, "assign-joint{gap=0.5,time_limit=10}").require("plan")
    assert loose.optimality.proven
    tight = assign(ready, "assign-joint{gap=1e-6}").require("plan")
    assert tight.optimality.objective <= loose.optimality.objective
    assert tight.optimality.gap <= 1e-6
