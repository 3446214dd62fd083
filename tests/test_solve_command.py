"""`llmpq solve`: its JSON, its exit codes, and the choice of solver."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llmpq.cli import cli
from llmpq.errors import InfeasibleError, InputError, TimeLimitError
from llmpq.solver.problem import Problem, load_problem
from llmpq.solver.rules import Row, RuleContext, parse_rules, rule_rows
from llmpq.solver.solve import solve
from tests.random_problems import enumerate_optimum, random_problem

PLANNING = Path(__file__).parent / "data" / "planning"


def run(path: Path, *options: str) -> tuple[dict[str, Any], BaseException | None]:
    outcome = CliRunner().invoke(cli, ["solve", str(path), *options])
    return json.loads(outcome.stdout), outcome.exception


def written(tmp_path: Path, problem: Problem) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(problem.to_json()))
    return path


def rows_of(problem: Problem, *texts: str) -> tuple[Row, ...]:
    return rule_rows(parse_rules(texts), RuleContext.of(problem, (1,) * problem.num_layers))


def test_solve_prints_the_result_and_nothing_else() -> None:
    result, error = run(PLANNING / "L24_N2_s10-a.json")
    assert error is None
    assert list(result) == ["objective", "latency_s", "bound", "gap", "proven", "device", "option", "seconds", "solver"]
    assert result["proven"] is True and result["gap"] <= 1e-4 and result["solver"] in ("exact-c", "exact-python")
    assert len(result["device"]) == len(result["option"]) == 24
    assert set(result["device"]) == {"P100:0", "T4:0"}
    assert result["latency_s"] < result["objective"] == pytest.approx(3.564767939893393, rel=1.0001e-4)


def test_solve_of_the_infeasible_gives_reasons_and_exit_code_3(tmp_path: Path) -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-a.json")
    result, error = run(written(tmp_path, replace(problem, capacity_bytes=(2 * 10**9, 10**9))))
    assert isinstance(error, InfeasibleError) and error.exit_code == 3
    assert (result["objective"], result["device"], result["proven"]) == (None, None, True)
    assert result["reasons"] == list(error.reasons)
    assert "short" in result["reasons"][0]


def test_solve_without_time_is_exit_code_4() -> None:
    result, error = run(PLANNING / "L24_N4_s10-b.json", "--time-limit", "1e-6")
    assert isinstance(error, TimeLimitError) and error.exit_code == 4
    assert (result["objective"], result["proven"], result["gap"]) == (None, False, None)


def test_solve_of_a_missing_file_is_exit_code_2(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, ["solve", str(tmp_path / "nowhere.json")])
    assert isinstance(outcome.exception, InputError) and outcome.exception.exit_code == 2
    assert outcome.stdout == ""


def test_rules_that_are_masks_stay_with_the_exact_solver() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    rows = rows_of(problem, "layers[0:2].bits >= 8", "device('T4:0').precision != w4a16", "last_layer.device == 'T4:0'")
    solution = solve(problem, rows=rows)
    assert solution.solver.startswith("exact") and "highs" not in solution.solver
    assert solution.proven and solution.assignment is not None
    assert all(row.holds(solution.assignment) for row in rows)


def test_a_rule_that_the_optimum_keeps_anyway_costs_nothing() -> None:
    problem = load_problem(PLANNING / "L24_N2_s10-b.json")
    free = solve(problem)
    kept = solve(problem, rows=rows_of(problem, "average_bits <= 16"))
    assert (kept.objective, kept.bound, kept.solver) == (free.objective, free.bound, free.solver)


@pytest.mark.parametrize("text", ["layers[0].device != layers[1].device", "count(w4a16) >= 2", "average_bits <= 6"])
def test_a_rule_that_no_mask_expresses_is_kept_and_the_optimum_is_that_of_enumeration(text: str) -> None:
    feasible = 0
    for seed in range(40):
        problem = random_problem(seed)
        if text.startswith("count") and "w4a16" not in problem.options:
            continue
        rows = rows_of(problem, text)
        optimum, solution = enumerate_optimum(problem, rows), solve(problem, rows=rows)
        if optimum is None:
            assert (solution.status, solution.proven) == ("infeasible", True), seed
            continue
        feasible += 1
        assert solution.proven and solution.assignment is not None, seed
        assert solution.objective == pytest.approx(optimum, rel=1.0001e-4), seed
        assert all(row.holds(solution.assignment) for row in rows), seed
    assert feasible > 5
