"""The outer search against enumeration: optimum, bounds that hold, time limits, what it leaves out."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from random import Random
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmpq.planning.order_free
import llmpq.planning.orders
import llmpq.planning.search
from llmpq.errors import TimeLimitError
from llmpq.hardware.cluster import Cluster
from llmpq.planning.candidates import Group, build_problem, candidate_groups
from llmpq.planning.option_sets import OptionSet
from llmpq.planning.orders import identical_devices
from llmpq.planning.quick_bounds import quick_bound
from llmpq.planning.search import Search, _Item, search
from llmpq.planning.space import EVERYTHING, Space
from llmpq.program import Program, Target
from llmpq.solver.problem import Problem, evaluate
from llmpq.solver.rules import parse_rules
from llmpq.solver.solution import Solution
from tests.random_programs import GAP, best_objective, enumerate_plans, random_program, with_costs

SEEDS = st.integers(0, 10**6)
UNLIMITED = Target(budget=None)


def searched(program: Program) -> float | None:
    found = search(program, program.request.target.budget)
    return None if found is None else found.objective


def same(objective: float | None, expected: float | None) -> bool:
    if objective is None or expected is None:
        return objective is expected
    return abs(objective - expected) <= 2 * GAP * expected


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_the_optimum_equals_enumeration_over_orders_sizes_and_assignments(seed: int) -> None:
    program = random_program(seed)
    budget = program.request.target.budget
    found, expected = search(program, budget), best_objective(program, budget)
    assert same(None if found is None else found.objective, expected)
    if found is not None:
        assert found.proven
        assert found.bound <= found.objective
        assert found.objective == evaluate(found.problem, found.assignment).objective


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_bounds_of_a_group_hold_for_every_order_of_its_devices(seed: int) -> None:
    program = random_program(seed)
    budget = program.request.target.budget
    best: dict[tuple[int, int, int, OptionSet], float] = {}
    for candidate, _, evaluation in enumerate_plans(program, budget):
        key = (len(candidate.order), candidate.prefill_micro_batch, candidate.decode_micro_batch, candidate.options)
        best[key] = min(best.get(key, evaluation.objective), evaluation.objective)
    state = Search(program, budget, EVERYTHING, GAP, float("inf"), identical_devices(program))
    for group in candidate_groups(program):
        if len(group.devices) == 1:
            continue
        model = state.order_free(_Item("group", group, 0, group.candidate()))
        least = best.get((len(group.devices), group.prefill_micro_batch, group.decode_micro_batch, group.options))
        relaxed, integral = model.relaxed(60.0), model.integral(GAP, 60.0, None)
        if least is not None:
            assert relaxed.value is not None
            assert integral.value is not None
            assert relaxed.value <= integral.value * (1 + 1e-6)
            assert integral.value <= least * (1 + 1e-6)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_quick_bounds_of_a_batch_hold(seed: int) -> None:
    program = random_program(seed)
    for candidate, _, evaluation in enumerate_plans(program, program.request.target.budget):
        sizes = candidate.prefill_micro_batch, candidate.decode_micro_batch
        group = Group(tuple(sorted(candidate.order)), *sizes, options=candidate.options)
        assert quick_bound(program, group) <= evaluation.objective * (1 + 1e-9)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        pytest.param(llmpq.planning.search, "ORDERS_AT_ONCE", 1, id="orders come one at a time"),
        pytest.param(llmpq.planning.orders, "LIKELY_ORDERS", 0, id="orders come as they are listed"),
        pytest.param(llmpq.planning.orders, "MAX_TEAMS", 0, id="too many teams"),
        pytest.param(llmpq.planning.order_free, "SMALL", 0, id="whole numbers are never asked for"),
    ],
)
def test_the_optimum_is_proven_by_every_way_through_the_search(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, value: int
) -> None:
    monkeypatch.setattr(module, name, value)
    for seed in range(25):
        program = random_program(seed)
        found, expected = search(program, program.request.target.budget), best_objective(program, program.request.target.budget)
        if expected is None:
            assert found is None
            continue
        assert found is not None
        assert found.bound <= expected * (1 + 1e-9)
        assert found.objective >= expected * (1 - 1e-9)
        assert found.proven
        assert same(found.objective, expected)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_more_memory_never_hurts(seed: int) -> None:
    program = random_program(seed)
    cluster = program.request.cluster
    larger = replace(cluster, devices=tuple(replace(d, memory_bytes=d.memory_bytes + 200_000) for d in cluster.devices))
    before, after = searched(program), searched(replace(program, request=replace(program.request, cluster=larger)))
    if before is not None:
        assert after is not None
        assert after <= before * (1 + 2 * GAP)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.randoms(use_true_random=False))
def test_devices_may_be_listed_in_any_order(seed: int, rng: Random) -> None:
    program = random_program(seed)
    program = replace(program, request=replace(program.request, rules=()))
    devices = list(program.request.cluster.devices)
    rng.shuffle(devices)
    cluster = replace(program.request.cluster, devices=tuple(devices))
    shuffled = with_costs(replace(program, costs=None, compute_dtype=None, request=replace(program.request, cluster=cluster)))
    assert same(searched(shuffled), searched(program))


def two_twins_and_another(rules: tuple[str, ...] = ()) -> Program:
    text = """
name: twins
devices:
  - {type: CPU, memory: 700 KiB, count: 2, speed: 0.5, host: a}
  - {type: CPU, memory: 1500 KiB, speed: 1, host: a}
"""
    program = random_program(3, UNLIMITED)
    cluster = Cluster.from_yaml(text, "twins.yaml")
    request = replace(program.request, cluster=cluster, rules=parse_rules(rules))
    return with_costs(replace(program, costs=None, compute_dtype=None, request=request))


def test_a_rule_tells_identical_devices_apart() -> None:
    program = two_twins_and_another(("last_layer.device == 'CPU:0'", "first_layer.device == 'CPU:1'"))
    found = search(program, None)
    assert found is not None
    names = [found.problem.devices[j] for j in found.assignment.used_devices]
    assert (names[0], names[-1]) == ("CPU:1", "CPU:0")
    assert same(found.objective, best_objective(program, None))


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_the_restrictions_of_a_space_are_searched_together(seed: int) -> None:
    program = random_program(seed)
    budget = program.request.target.budget

    def only_first(problem: Problem) -> Problem:
        return replace(problem, capacity_bytes=(*problem.capacity_bytes[:1], *(-1 for _ in problem.devices[1:])))

    def nothing(problem: Problem) -> Problem:
        return replace(problem, capacity_bytes=tuple(-1 for _ in problem.devices))

    found = search(program, budget, space=Space(restrictions=(nothing, only_first)))
    plans = enumerate_plans(program, budget)
    alone = [e.objective for _, a, e in plans if set(a.device) == {0}]
    assert same(None if found is None else found.objective, min(alone, default=None))


def first_feasible(seeds: Iterator[int]) -> Program:
    return next(
        program
        for seed in seeds
        if (program := random_program(seed, UNLIMITED)) and next(enumerate_plans(program, None), None) is not None
    )


class Clock:
    """Seconds that pass with every look at the clock."""

    def __init__(self, per_look: float) -> None:
        self.looks, self.per_look = count(), per_look

    def monotonic(self) -> float:
        return next(self.looks) * self.per_look


def test_the_time_limit_without_a_plan_that_fits_at_a_glance_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = first_feasible(count())
    refused = replace(program, request=replace(program.request, rules=parse_rules(("count(16) >= 99",))))
    monkeypatch.setattr(llmpq.planning.search, "time", Clock(per_look=1000.0))
    with pytest.raises(TimeLimitError, match="no plan was found within 60 s"):
        search(refused, None)


def test_without_time_to_search_what_fits_at_a_glance_is_the_plan_and_nothing_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = first_feasible(count())
    monkeypatch.setattr(llmpq.planning.search, "time", Clock(per_look=1000.0))
    found = search(program, None)
    assert found is not None
    assert not evaluate(found.problem, found.assignment).violations
    assert (found.bound, found.proven) == (0.0, False)


@pytest.mark.parametrize("per_look", [0.3, 1.0, 3.0, 10.0])
def test_the_time_limit_leaves_a_plan_with_a_bound_that_holds(monkeypatch: pytest.MonkeyPatch, per_look: float) -> None:
    program = first_feasible(count(100))
    plans = list(enumerate_plans(program, None))
    candidate, assignment, worst = max(plans, key=lambda plan: plan[2].objective)
    best = min(plan[2].objective for plan in plans)
    start = (candidate, build_problem(program, candidate, None), assignment)
    monkeypatch.setattr(llmpq.planning.search, "time", Clock(per_look))
    found = search(program, None, starts=(start,))
    assert found is not None
    assert found.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= found.objective <= worst.objective
    assert found.proven == (found.objective - found.bound <= GAP * found.objective * (1 + 1e-9))


def test_without_any_time_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = first_feasible(count(200))
    candidate, assignment, evaluation = next(enumerate_plans(program, None))
    start = (candidate, build_problem(program, candidate, None), assignment)
    found = search(program, None, starts=(start,), deadline=0.0)
    assert found is not None
    assert (found.objective, found.bound, found.proven) == (evaluation.objective, 0.0, False)


def test_a_solver_that_gives_up_is_asked_again_and_leaves_an_unproven_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    program = first_feasible(count(300))
    monkeypatch.setattr(llmpq.planning.order_free, "SMALL", 0)
    limits: list[float] = []

    def gives_up(problem: Problem, *, time_limit_s: float, **_: object) -> Solution:
        limits.append(time_limit_s)
        return Solution(None, None, None, False, "time_limit", "none", 0.0)

    monkeypatch.setattr(llmpq.planning.search, "solve", gives_up)
    monkeypatch.setattr(llmpq.planning.search, "time", Clock(per_look=0.05))
    candidate, assignment, _ = max(enumerate_plans(program, None), key=lambda plan: plan[2].objective)
    start = (candidate, build_problem(program, candidate, None), assignment)
    found = search(program, None, starts=(start,))
    assert found is not None
    assert not found.proven
    best = best_objective(program, None)
    assert best is not None
    assert found.bound <= best * (1 + 1e-12)
    assert max(limits) <= 60.0


def test_starts_that_break_something_are_not_kept() -> None:
    program = first_feasible(count(400))
    candidate, assignment, _ = next(enumerate_plans(program, None))
    start = (candidate, build_problem(program, candidate, None), assignment)
    refused = replace(program, request=replace(program.request, rules=parse_rules(("count(16) >= 99",))))
    assert search(program, None, starts=(start,)) is not None
    assert search(refused, None, starts=(start,)) is None
