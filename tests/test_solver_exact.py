"""The exact solver: equal to enumeration and to the best known objectives, C and Python alike, honest about its bounds."""

import json
import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmpq.native import load_library
from llmpq.solver.exact import answer, native, search, solve
from llmpq.solver.exact.answer import solve_with
from llmpq.solver.exact.figures import Figures
from llmpq.solver.exact.grid import Caps, Grid
from llmpq.solver.exact.kernels import Kernels
from llmpq.solver.exact.masks import split_rows
from llmpq.solver.exact.native import NativeKernels, native_kernels
from llmpq.solver.exact.search import Search
from llmpq.solver.exact.twin import PythonKernels
from llmpq.solver.exact.twin_grid import Plain, onto_simplex, project
from llmpq.solver.problem import Problem, Row, evaluate, load_problem
from llmpq.solver.rules import RuleContext, parse_rules, rule_rows
from llmpq.solver.solution import Solution
from tests.random_problems import enumerate_optimum, random_problem

PLANNING = Path(__file__).parent.parent / "benchmarks" / "data" / "planning"
SMALL = sorted(path.stem for path in PLANNING.glob("L[234]*.json"))
LARGE = ["L64_N6_s12-c", "L64_N8_s10-d", "L80_N8_s10-b", "L96_N8_s10-a", "L80_N16_s12-b", "L96_N16_s10-b", "L126_N16_s12-a"]


def c_kernels() -> NativeKernels:
    kernels = native_kernels()
    if kernels is None:
        pytest.skip("no C compiler on this machine")
    return kernels


def best_known(name: str) -> tuple[Problem, dict[str, Any]]:
    path = PLANNING / f"{name}.json"
    return load_problem(path), json.loads(path.read_text())["best_known"]


def searched(kernels: Kernels, problem: Problem, gap: float) -> Search:
    run = Search(Figures(problem, split_rows(problem, ())[0]), kernels, gap)
    run.run()
    return run


def check(solution: Solution, problem: Problem, optimum: float | None, seed: int) -> None:
    """Proven, and equal to the optimum within 1e-9."""
    if optimum is None:
        assert (solution.status, solution.objective, solution.proven) == ("infeasible", None, True), seed
        return
    assert solution.proven and solution.assignment is not None and solution.bound is not None, seed
    assert solution.objective == pytest.approx(optimum, rel=1.01e-9, abs=1e-15), seed
    assert solution.bound <= optimum * (1 + 1e-12) + 1e-15, seed
    assert not evaluate(problem, solution.assignment).violations, seed


@pytest.mark.parametrize("part", range(10))
def test_random_problems_are_solved_as_enumeration_solves_them(part: int) -> None:
    feasible = 0
    for seed in range(part * 100, part * 100 + 100):
        problem = random_problem(seed)
        optimum = enumerate_optimum(problem)
        feasible += optimum is not None
        check(solve_with(c_kernels(), problem, gap=1e-9), problem, optimum, seed)
    assert feasible > 30


@pytest.mark.parametrize("seed", [6405, 7011, 7130])
def test_where_stages_take_the_same_time_nothing_is_left_to_highs(seed: int) -> None:
    problem = random_problem(seed)
    solution = solve_with(c_kernels(), problem, gap=1e-9)
    check(solution, problem, enumerate_optimum(problem), seed)
    assert solution.solver == "exact-c"


def test_a_budget_that_nothing_keeps_is_found_out() -> None:
    problem = best_known("L48_N4_s10-c")[0]
    solution = solve(replace(problem, sensitivity_budget=0.0))
    assert (solution.status, solution.objective, solution.proven) == ("infeasible", None, True)
    assert "highs" not in solution.solver


def test_python_kernels_solve_random_problems_as_enumeration_solves_them() -> None:
    for seed in range(20_000, 20_020):
        problem = random_problem(seed)
        check(solve_with(PythonKernels(), problem, gap=1e-9), problem, enumerate_optimum(problem), seed)


def test_rules_that_are_masks_are_kept_and_the_optimum_is_that_of_enumeration() -> None:
    texts = ("last_layer.precision != w4a16", "layers[-1].bits >= 8", "first_layer.device == 'D:0'", "layers[0].device != 'D:0'")
    feasible = 0
    for seed in range(3000, 3100):
        problem = random_problem(seed)
        chosen = random.Random(seed).sample(texts, 1)
        rows = rule_rows(parse_rules(chosen), RuleContext.of(problem, (1,) * problem.num_layers))
        optimum = enumerate_optimum(problem, rows)
        feasible += optimum is not None
        assert split_rows(problem, rows)[1] == ()
        solution = solve_with(c_kernels(), problem, gap=1e-9, rows=rows)
        check(solution, problem, optimum, seed)
        assert solution.assignment is None or all(row.holds(solution.assignment) for row in rows)
    assert feasible > 20


def test_a_row_of_one_layer_is_a_mask_whatever_its_sense() -> None:
    problem = best_known("L24_N2_s10-b")[0]
    cells = tuple((3, device, option, float(option)) for device in range(2) for option in range(4))
    for sense, rhs, allowed in (("<=", 1.0, {0, 1}), (">=", 2.0, {2, 3}), ("==", 2.0, {2})):
        mask, rest = split_rows(problem, (Row("row", cells, sense, rhs),))  # type: ignore[arg-type]
        assert rest == ()
        assert {option for option in range(4) if mask[3, 0, option]} == allowed
        assert mask[2].all()


def test_a_row_over_several_layers_is_no_mask_and_goes_to_highs() -> None:
    problem, best = best_known("L24_N2_s10-b")
    row = Row("at least twenty at 4 bits", tuple((i, j, 1, 1.0) for i in range(24) for j in range(2)), ">=", 20.0)
    assert split_rows(problem, (row,))[1] == (row,)
    solution = solve(problem, rows=(row,))
    assert solution.solver == "highs" and solution.assignment is not None and row.holds(solution.assignment)
    assert solution.objective is not None and solution.objective > best["objective"]


@pytest.mark.parametrize("seed", range(30))
def test_c_and_python_kernels_walk_the_same_tree(seed: int) -> None:
    same_tree(random_problem(seed), 1e-6)


@pytest.mark.parametrize("name", ["L24_N2_s10-a", "L24_N2_s12-b", "L24_N4_s12-c", "L48_N4_s10-c"])
def test_c_and_python_kernels_walk_the_same_tree_on_larger_problems(name: str) -> None:
    same_tree(best_known(name)[0], 1e-4)


def same_tree(problem: Problem, gap: float) -> None:
    """Equal bit for bit."""
    c, python = searched(c_kernels(), problem, gap), searched(PythonKernels(), problem, gap)
    assert (c.best, c.bound, c.assignment, c.effort) == (python.best, python.bound, python.assignment, python.effort)


@pytest.mark.parametrize("name", SMALL + LARGE)
def test_the_best_known_objectives_are_reached_and_proven(name: str) -> None:
    problem, best = best_known(name)
    solution = solve(problem)
    assert solution.proven and solution.status == "optimal"
    assert solution.objective is not None and solution.bound is not None and solution.assignment is not None
    assert solution.objective <= best["objective"] * (1 + 1e-4)
    assert solution.objective >= best["bound"] * (1 - 1e-4)
    assert not best["proven"] or solution.bound <= best["objective"] * (1 + 1e-9)
    assert evaluate(problem, solution.assignment).objective == solution.objective


def test_the_same_problem_gets_the_same_answer_twice() -> None:
    problem, _ = best_known("L24_N4_s10-c")
    first, second = solve(problem), solve(problem)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


def test_a_cutoff_below_the_optimum_proves_that_nothing_is_better() -> None:
    problem, best = best_known("L24_N4_s10-b")
    below = solve(problem, cutoff=best["objective"] * 0.999)
    assert (below.status, below.assignment, below.proven) == ("cutoff", None, True)
    assert below.bound == best["objective"] * 0.999
    above = solve(problem, cutoff=best["objective"] * 1.01)
    assert above.status == "optimal" and above.objective == pytest.approx(best["objective"], rel=1.0001e-4)


@pytest.mark.parametrize("name", ["L24_N4_s10-b", "L24_N4_s12-c"])
def test_at_a_time_limit_the_incumbent_lies_above_and_the_bound_below_the_optimum(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, best = best_known(name)
    seen = set()
    for limit in (0, *range(10, 130, 10)):
        ticks = count()
        for module in (answer, search):
            monkeypatch.setattr(module, "perf_counter", lambda ticks=ticks: float(next(ticks)))
        solution = solve(problem, time_limit_s=limit)
        seen.add(solution.status)
        assert solution.proven == (solution.status == "optimal")
        assert solution.bound is not None and solution.bound <= best["objective"] * (1 + 1e-9)
        if solution.assignment is not None:
            assert solution.objective == evaluate(problem, solution.assignment).objective >= best["objective"] * (1 - 1e-4)
    assert seen == {"time_limit", "feasible", "optimal"}


def test_too_many_stages_are_left_to_highs_with_the_bound_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, best = best_known("L24_N2_s10-b")
    monkeypatch.setattr(search, "MOST", (50, 1000))
    solution = solve(problem)
    assert solution.solver.endswith("+highs") and solution.proven
    assert solution.objective == pytest.approx(best["objective"], rel=1.0001e-4)


def test_too_many_paths_are_bounded_and_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmpq.solver.exact import boxes

    problem, best = best_known("L24_N4_s10-c")
    monkeypatch.setattr(boxes.Node, "__init__", _with_few_paths(boxes.Node.__init__))
    solution = solve(problem)
    assert solution.proven and solution.objective == pytest.approx(best["objective"], rel=1.0001e-4)


def _with_few_paths(original: Any) -> Any:
    def init(self: Any, box: Any, bound: Any, multipliers: Any, graph: Any, most: int = 40) -> None:
        original(self, box, bound, multipliers, graph, most)

    return init


def test_every_feasible_multiplier_gives_a_lower_bound() -> None:
    rng, checked = np.random.default_rng(0), 0
    for seed in range(60):
        problem = random_problem(seed)
        optimum = enumerate_optimum(problem)
        if optimum is None:
            continue
        figures = Figures(problem, split_rows(problem, ())[0])
        grids = [Grid.of(figures, first, Caps()) for first in range(figures.shape[0])]
        for _ in range(5):
            scale = rng.uniform(0, 1, 3 * figures.shape[0] + 1) * rng.choice([0.01, 1.0, 100.0])
            at = np.array(project(Plain.of(grids[0]), scale.tolist()))
            bounds = [c_kernels().grid_bound(grid, at, -1.0) for grid in grids]
            assert min(bounds) <= optimum * (1 + 1e-9) + 1e-12, seed
            checked += 1
    assert checked > 100


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    assert onto_simplex([0.5, 0.5], 1.0) == [0.5, 0.5]
    assert onto_simplex([2.0, 0.0], 1.0) == [1.0, 0.0]
    assert onto_simplex([1.0, 1.0, -5.0], 1.0) == [0.5, 0.5, 0.0]
    assert onto_simplex([3.0, 1.0], 0.0) == [0.0, 0.0]


def test_without_a_compiler_the_python_kernels_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "native_kernels", lambda: None)
    problem, best = best_known("L24_N2_s10-b")
    solution = solve(problem)
    assert solution.solver == "exact-python"
    assert solution.objective == pytest.approx(best["objective"], rel=1.0001e-4)


def test_a_changed_source_or_a_new_machine_builds_once_and_a_broken_compiler_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c_kernels()
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path))
    load_library.cache_clear()
    assert load_library(native.SOURCE, native.FLAGS) is not None
    (built,) = tmp_path.iterdir()
    stamp = built.stat().st_mtime_ns
    load_library.cache_clear()
    assert load_library(native.SOURCE, native.FLAGS) is not None
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [stamp]
    changed = tmp_path / "kernels.c"
    changed.write_text("this is no C")
    assert load_library(changed, native.FLAGS) is None


def test_a_changed_header_builds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c_kernels()
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path / "cache"))
    source, header = tmp_path / "answer.c", tmp_path / "answer.h"
    source.write_text('#include "answer.h"\nint answer(void) { return ANSWER; }\n')
    found = []
    for number in (1, 2):
        header.write_text(f"#define ANSWER {number}\n")
        load_library.cache_clear()
        library = load_library(source, ())
        assert library is not None
        found.append(library.answer())
    assert found == [1, 2]
