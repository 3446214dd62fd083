"""The MILP: equal to enumeration and to the best known objectives, with honest bounds; shortages."""

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmpq.errors import InfeasibleError
from llmpq.solver.classes import classify
from llmpq.solver.linear import Limits, run_highs
from llmpq.solver.milp import breaks, least_sensitivity, relaxation_bound, shortage, solve
from llmpq.solver.model import latency_model
from llmpq.solver.narrow import narrow
from llmpq.solver.problem import Problem, Row, evaluate, load_problem
from llmpq.solver.rules import RuleContext, parse_rules, rule_rows
from llmpq.solver.solution import Solution
from tests.random_problems import enumerate_optimum, random_problem

PLANNING = Path(__file__).parent / "data" / "planning"
FAMILIES = "abcd"
RULES = (
    "layers[0].device == layers[1].device",
    "device('D:0').layers <= 1",
    "count(w4a16) >= 1",
    "average_bits <= 6",
    "last_layer.precision != w4a16",
    "layers[-1].bits >= 8",
    "first_layer.device == 'D:0'",
    "device('D:0').precision in {w8a16, 16}",
)


def best_known(name: str) -> tuple[Problem, dict[str, Any]]:
    path = PLANNING / f"{name}.json"
    return load_problem(path), json.loads(path.read_text())["best_known"]


def some_rows(problem: Problem, seed: int) -> tuple[Row, ...]:
    """Rows of none, one or two rules."""
    rng = random.Random(seed)
    parameters = tuple(1 + kind for kind in problem.layer_kind)
    return rule_rows(parse_rules(rng.sample(RULES, rng.choice((0, 0, 1, 2)))), RuleContext.of(problem, parameters))


@pytest.mark.parametrize("part", range(10))
def test_random_problems_are_solved_as_enumeration_solves_them(part: int) -> None:
    feasible = 0
    for seed in range(part * 20, part * 20 + 20):
        problem = random_problem(seed)
        rows = some_rows(problem, seed)
        optimum, solution, bound = enumerate_optimum(problem, rows), solve(problem, rows=rows), relaxation_bound(problem, rows)
        if optimum is None:
            assert (solution.status, solution.objective, solution.proven) == ("infeasible", None, True), seed
            continue
        feasible += 1
        assert solution.proven and solution.assignment is not None, seed
        assert solution.objective == pytest.approx(optimum, rel=1.0001e-4), seed
        assert solution.bound is not None and solution.bound <= optimum * (1 + 1e-7), seed
        assert bound is not None and bound <= optimum * (1 + 1e-7), seed
        assert not breaks(problem, rows, solution.assignment), seed
    assert feasible


@pytest.mark.parametrize("name", [f"L24_N2_s10-{family}" for family in FAMILIES] + ["L24_N4_s10-c"])
def test_the_best_known_objectives_are_reached_and_proven(name: str) -> None:
    problem, best = best_known(name)
    solution = solve(problem)
    assert solution.proven and solution.status == "optimal"
    assert solution.objective == pytest.approx(best["objective"], rel=1.0001e-4)
    assert solution.bound is not None and solution.bound <= best["objective"] * (1 + 1e-7)
    assert solution.assignment is not None and evaluate(problem, solution.assignment).objective == solution.objective


@pytest.mark.parametrize("name", [f"L24_N4_s10-{family}" for family in FAMILIES])
def test_the_relaxation_bounds_the_best_known_objective(name: str) -> None:
    problem, best = best_known(name)
    bound = relaxation_bound(problem)
    assert bound is not None and 0.8 * best["objective"] < bound <= best["objective"]


def test_the_same_problem_gets_the_same_answer_twice() -> None:
    problem, _ = best_known("L24_N2_s10-c")
    first, second = solve(problem), solve(problem)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


def test_the_least_sensitivity_is_that_of_enumeration() -> None:
    found = 0
    for seed in range(40):
        problem = replace(random_problem(seed), sensitivity_budget=None)
        solution = least_sensitivity(problem)
        free = replace(
            problem,
            prefill_s=zero_cells(problem.prefill_s),
            decode_s=zero_cells(problem.decode_s),
            link_prefill_s=((0.0,) * len(problem.devices),) * len(problem.devices),
            link_decode_s=((0.0,) * len(problem.devices),) * len(problem.devices),
            first_stage=replace(
                problem.first_stage, prefill_s=(0.0,) * len(problem.devices), decode_s=(0.0,) * len(problem.devices)
            ),
            last_stage=replace(
                problem.last_stage, prefill_s=(0.0,) * len(problem.devices), decode_s=(0.0,) * len(problem.devices)
            ),
            theta=1.0,
        )
        optimum = enumerate_optimum(free)
        if optimum is None:
            assert solution.status == "infeasible", seed
            continue
        found += 1
        assert solution.objective == pytest.approx(optimum, rel=1.0001e-4, abs=1e-9), seed
    assert found > 10


def zero_cells(cells: Any) -> Any:
    return tuple(tuple(tuple(None if cell is None else 0.0 for cell in row) for row in kind) for kind in cells)


def test_layers_that_nothing_tells_apart_share_a_class_and_a_rule_splits_them() -> None:
    problem, _ = best_known("L24_N2_s10-b")
    flat = replace(problem, sensitivity=(problem.sensitivity[0],) * 24)
    context = RuleContext.of(flat, (7,) * 24)
    assert len(classify(problem, ()).members) == 24
    assert len(classify(flat, ()).members) == 1
    whole = rule_rows(parse_rules(["average_bits <= 8", "layers[3].device == layers[4].device", "count(16) >= 3"]), context)
    assert len(classify(flat, whole).members) == 1
    named = rule_rows(parse_rules(["layers[0:2].bits >= 8"]), context)
    assert classify(flat, named).members == ((0, 1), tuple(range(2, 24)))


def test_aggregated_layers_cost_what_separate_ones_cost() -> None:
    for seed in range(30):
        problem = random_problem(seed)
        flat = replace(problem, sensitivity=(problem.sensitivity[0],) * problem.num_layers)
        apart = replace(flat, sensitivity=tuple(tuple(s + 1e-12 * i for s in row) for i, row in enumerate(flat.sensitivity)))
        first, second = solve(flat).objective, solve(apart).objective
        assert first == (None if second is None else pytest.approx(second, rel=2e-4)), seed


def test_a_capacity_that_is_met_to_the_byte_is_met_and_one_byte_less_is_not() -> None:
    for seed in range(60):
        problem = replace(random_problem(seed), sensitivity_budget=None)
        solution = solve(problem)
        if solution.assignment is None or len(solution.assignment.used_devices) < len(problem.devices):
            continue
        held = evaluate(problem, solution.assignment).bytes
        big = tuple(
            tuple(tuple(None if c is None else c * 10_000_019 for c in row) for row in kind) for kind in problem.layer_bytes
        )
        ends = [replace(end, bytes=tuple(b * 10_000_019 for b in end.bytes)) for end in (problem.first_stage, problem.last_stage)]
        exact = replace(
            problem,
            layer_bytes=big,
            first_stage=ends[0],
            last_stage=ends[1],
            capacity_bytes=tuple(h * 10_000_019 for h in held),
        )
        assert solve(exact).objective == pytest.approx(solution.objective, rel=2e-4)
        tight = solve(replace(exact, capacity_bytes=tuple(c - 1 for c in exact.capacity_bytes)))
        assert tight.assignment is None or tight.assignment != solution.assignment


def test_a_cutoff_below_the_optimum_proves_that_nothing_is_better() -> None:
    problem, best = best_known("L24_N2_s10-b")
    below = solve(problem, cutoff=best["objective"] * 0.99)
    assert (below.status, below.assignment, below.proven) == ("cutoff", None, True)
    assert below.bound is not None and below.bound <= best["objective"] * 0.99
    above = solve(problem, cutoff=best["objective"] * 1.01)
    assert above.status == "optimal" and above.objective == pytest.approx(best["objective"], rel=1.0001e-4)


def test_narrowing_below_a_ceiling_keeps_every_assignment_under_it() -> None:
    kept = 0
    for seed in range(200, 260):
        problem = random_problem(seed)
        optimum = enumerate_optimum(problem)
        if not optimum:
            continue
        kept += 1
        model = narrow(problem, latency_model(problem, ()), optimum)
        outcome = run_highs(model.linear, Limits(gap=1e-9))
        assert outcome.bound is not None and outcome.bound * model.unit == pytest.approx(optimum, rel=1e-6), seed
    assert kept > 10


def test_without_time_there_is_no_plan_and_no_claim() -> None:
    problem, _ = best_known("L24_N4_s10-b")
    solution = solve(problem, time_limit_s=1e-6)
    assert (solution.status, solution.assignment, solution.proven) == ("time_limit", None, False)


def test_the_shortage_is_the_least_excess_of_enumeration() -> None:
    short = 0
    for seed in range(60):
        problem = replace(random_problem(seed), sensitivity_budget=None)
        try:
            found = shortage(problem)
        except InfeasibleError:
            assert solve(replace(problem, capacity_bytes=(10**6,) * len(problem.devices))).status == "infeasible", seed
            continue
        assert bool(found) == (solve(problem).status == "infeasible"), seed
        if not found:
            continue
        short += 1
        raised = dict(found)
        capacity = tuple(c + raised.get(name, 0) for name, c in zip(problem.devices, problem.capacity_bytes))
        assert solve(replace(problem, capacity_bytes=capacity)).assignment is not None, seed
    assert short > 5


def test_shortage_says_so_when_memory_is_not_what_is_missing() -> None:
    problem, _ = best_known("L24_N2_s10-b")
    rows = rule_rows(parse_rules(["count(16) >= 25"]), RuleContext.of(problem, (1,) * 24))
    with pytest.raises(InfeasibleError, match="whatever the memory"):
        shortage(problem, rows)


def test_placement_is_contiguous_in_the_order_of_the_devices() -> None:
    problem, _ = best_known("L24_N2_s10-d")
    solution = solve(problem, gap=0.05)
    assert solution.assignment is not None
    assert all(a <= b for a, b in pairwise(solution.assignment.device))


def test_the_gap_is_relative_and_never_negative() -> None:
    solution = Solution(None, 4.0, 3.0, False, "feasible", "highs", 0.0)
    assert solution.gap == 0.25
    assert replace(solution, bound=4.1).gap == 0.0
    assert replace(solution, bound=None).gap is None
    assert replace(solution, objective=0.0, bound=0.0).gap == 0.0
