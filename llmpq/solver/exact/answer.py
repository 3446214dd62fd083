"""Answer: the exact solver's run as a Solution, with HiGHS for what it does not take."""

from dataclasses import replace
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

from llmpq.solver.problem import Problem, Row
from llmpq.solver.solution import DEFAULT_GAP, Solution, relative_gap

if TYPE_CHECKING:
    from llmpq.solver.exact.kernels import Kernels
    from llmpq.solver.exact.search import Search

ROUNDING = 1e-10  # relative, taken off every bound: sums of floats in another order


def solve(
    problem: Problem,
    *,
    gap: float = DEFAULT_GAP,
    time_limit_s: float | None = None,
    rows: tuple[Row, ...] = (),
    cutoff: float | None = None,
) -> Solution:
    """The assignment of least objective within `gap`, with a proven bound; `cutoff`: only better ones are of interest.

    Rows that only forbid cells are part of the search; with any other row HiGHS solves the problem. HiGHS also takes
    over, with the time and the bound that are left, where the stages to look at are too many. Deterministic unless the time
    limit strikes.
    """
    return solve_with(best_kernels(), problem, gap, time_limit_s, rows, cutoff)


def best_kernels() -> "Kernels":
    """Those in C, or in Python where there is no C compiler."""
    from llmpq.solver.exact.native import native_kernels

    native = native_kernels()
    if native is not None:
        return native
    from llmpq.solver.exact.twin import PythonKernels

    return PythonKernels()


def solve_with(
    kernels: "Kernels",
    problem: Problem,
    gap: float = DEFAULT_GAP,
    time_limit_s: float | None = None,
    rows: tuple[Row, ...] = (),
    cutoff: float | None = None,
) -> Solution:
    """As `solve`, by the given kernels."""
    from llmpq.solver.exact.figures import Figures
    from llmpq.solver.exact.masks import split_rows
    from llmpq.solver.exact.search import Search

    started = perf_counter()
    allowed, rest = split_rows(problem, rows)
    if rest:
        return _highs(problem, gap, time_limit_s, rows, cutoff)
    deadline = inf if time_limit_s is None else started + time_limit_s
    search = Search(Figures(problem, allowed), kernels, gap, deadline, inf if cutoff is None else cutoff)
    search.run()
    if search.stuck:
        left = None if time_limit_s is None else max(0.0, deadline - perf_counter())
        return _merged(search, _highs(problem, gap, left, rows, cutoff), gap, perf_counter() - started)
    return _solution(search, cutoff, gap, perf_counter() - started)


def _highs(problem: Problem, gap: float, time_limit_s: float | None, rows: tuple[Row, ...], cutoff: float | None) -> Solution:
    from llmpq.solver import milp

    return milp.solve(problem, gap=gap, time_limit_s=time_limit_s, rows=rows, cutoff=cutoff)


def _solution(search: "Search", cutoff: float | None, gap: float, seconds: float) -> Solution:
    name = search.kernels.name
    if search.infeasible:
        return Solution(None, None, cutoff, True, "infeasible" if cutoff is None else "cutoff", name, seconds)
    bound = search.bound - ROUNDING * abs(search.bound)
    if cutoff is not None and search.bound >= cutoff and search.best >= cutoff:
        return Solution(None, None, cutoff, True, "cutoff", name, seconds)
    if search.assignment is None:
        return Solution(None, None, bound, False, "time_limit", name, seconds)
    bound = min(bound, search.best)
    proven = closed(search.best, bound, gap)
    return Solution(search.assignment, search.best, bound, proven, "optimal" if proven else "feasible", name, seconds)


def _merged(search: "Search", other: Solution, gap: float, seconds: float) -> Solution:
    """The better plan and the better bound of the two; the name says that both ran."""
    name = f"{search.kernels.name}+{other.solver}"
    if other.status in ("infeasible", "cutoff"):
        return replace(other, solver=name, seconds=seconds)
    bound = max(search.bound - ROUNDING * abs(search.bound), -inf if other.bound is None else other.bound)
    plans = [(search.best, search.assignment), (inf if other.objective is None else other.objective, other.assignment)]
    objective, assignment = min(plans, key=lambda plan: plan[0])
    if assignment is None:
        return Solution(None, None, bound, False, "time_limit", name, seconds)
    bound = min(bound, objective)
    proven = closed(objective, bound, gap)
    return Solution(assignment, objective, bound, proven, "optimal" if proven else "feasible", name, seconds)


def closed(objective: float, bound: float, gap: float) -> bool:
    """Whether the gap is closed, up to rounding."""
    return relative_gap(objective, bound) <= gap * (1.0 + 1e-6) + 1e-9
