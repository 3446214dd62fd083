"""z3: optima equal to enumeration, minimal cores in the user's words, and the explanation of infeasibility."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmpq.solver.demands import Demand, demands, highs_conflict, keeping, minimal_core
from llmpq.solver.explain import explain_infeasible
from llmpq.solver.milp import solve
from llmpq.solver.problem import Problem, load_problem
from llmpq.solver.rules import Row, Rule, RuleContext, parse_rules, rule_rows
from llmpq.solver.smt import solve_small, unsat_core
from tests.random_problems import enumerate_optimum, random_problem

PLANNING = Path(__file__).parent / "data" / "planning"


def with_rules(problem: Problem, *texts: str) -> tuple[tuple[Row, ...], tuple[Rule, ...]]:
    rules = parse_rules(texts)
    return rule_rows(rules, RuleContext.of(problem, (1,) * problem.num_layers, ("P100:0", "T4:0", "H100:0"))), rules


@pytest.mark.parametrize("part", range(5))
def test_random_problems_are_solved_as_enumeration_solves_them(part: int) -> None:
    feasible = 0
    for seed in range(1000 + part * 8, 1008 + part * 8):
        problem = random_problem(seed)
        rows, _ = with_rules(problem, *(("count(w4a16) >= 1",) if seed % 3 == 0 else ()))
        optimum, solution = enumerate_optimum(problem, rows), solve_small(problem, rows)
        assert solution.objective == (None if optimum is None else pytest.approx(optimum, rel=1e-8)), seed
        feasible += optimum is not None
    assert feasible


def test_a_core_names_memory_and_constraint_in_the_users_words() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    small = replace(problem, capacity_bytes=(3 * 10**9, 14_710_000_000))
    texts = ("layers[0:24].bits >= 16", "count(w8a16) <= 4", "device('P100:0').layers >= 12")
    rows, rules = with_rules(small, *texts)
    assert set(unsat_core(small, rows, rules) or ()) == {
        "memory of P100:0 (2.8 GiB)",
        "constraint \"device('P100:0').layers >= 12\"",
        "constraint 'layers[0:24].bits >= 16'",
    }


def test_a_core_may_be_the_constraints_alone() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    rows, rules = with_rules(problem, "device('H100:0').layers >= 1", "count(16) >= 2")
    assert unsat_core(problem, rows, rules) == ("constraint \"device('H100:0').layers >= 1\"",)


def test_there_is_no_core_where_a_plan_exists() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    assert unsat_core(problem) is None
    assert explain_infeasible(problem) == ()


@pytest.mark.parametrize("oracle", ["z3", "highs"])
def test_cores_of_random_problems_conflict_and_nothing_in_them_is_superfluous(oracle: str) -> None:
    seen = 0
    for seed in range(40):
        problem = random_problem(seed)
        rows, rules = with_rules(problem, "layers[0].bits >= 8", "layers[0:2].device == last_layer.device")
        if enumerate_optimum(problem, rows) is not None:
            continue
        seen += 1
        core = found_core(oracle, problem, rows, rules)
        assert conflict(problem, rows, core), seed
        assert not any(conflict(problem, rows, tuple(d for d in core if d != demand)) for demand in core), seed
    assert seen > 5


def found_core(oracle: str, problem: Problem, rows: tuple[Row, ...], rules: tuple[Rule, ...]) -> tuple[Demand, ...]:
    everything = demands(problem, rows, rules)
    if oracle == "highs":
        found = minimal_core(everything, highs_conflict(problem, rows, 5.0))
        assert found is not None
        return found
    names = unsat_core(problem, rows, rules)
    assert names is not None
    return tuple(demand for demand in everything if demand.name in names)


def conflict(problem: Problem, rows: tuple[Row, ...], kept: tuple[Demand, ...]) -> bool:
    """By enumeration of the problem with these demands alone."""
    return enumerate_optimum(*keeping(problem, rows, kept)) is None


def test_an_explanation_names_the_devices_and_bytes_short_first() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-c.json")
    reasons = explain_infeasible(replace(problem, capacity_bytes=(2 * 10**9, 10**9)))
    assert reasons[-1] == "these cannot hold together: memory of P100:0 (1.9 GiB), memory of T4:0 (953.7 MiB)"
    assert len(reasons) > 1 and all(" short" in reason for reason in reasons[:-1])


def test_what_only_the_budget_makes_too_large_is_said_to_be_short_at_that_budget() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-c.json")
    flat = replace(
        problem, sensitivity=(problem.sensitivity[0],) * 24, sensitivity_budget=0.001, capacity_bytes=(29 * 10**8,) * 2
    )
    assert solve(flat).status == "infeasible"
    assert solve(replace(flat, sensitivity_budget=None)).assignment is not None
    reasons = explain_infeasible(flat)
    assert reasons[0].endswith("short at a quality budget of 0.001 nats per token")
    assert reasons[-1].endswith("memory of P100:0 (2.7 GiB), memory of T4:0 (2.7 GiB), quality budget 0.001 nats per token")


def test_constraints_against_each_other_are_explained_without_a_word_on_memory() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    rows, rules = with_rules(problem, "layers[3].bits == 16", "count(16) <= 0")
    assert explain_infeasible(problem, rows, rules) == (
        "these cannot hold together: constraint 'layers[3].bits == 16', constraint 'count(16) <= 0'",
    )


def test_unsupported_precisions_are_a_demand_that_can_be_in_the_way() -> None:
    problem = load_problem(PLANNING / "L24_N4_s10-d.json")
    rows, rules = with_rules(problem, "layers[0:24].precision == w8a16", "device('P100:0').layers >= 1")
    reasons = explain_infeasible(problem, rows, rules)
    assert len(reasons) == 1
    assert "precisions supported on P100:0" in reasons[0]
