"""Solve: the assignment problem by the exact solver first, by HiGHS where a rule or the size asks for it."""

from dataclasses import replace
from time import perf_counter

from llmpq.solver.problem import Problem, Row
from llmpq.solver.solution import DEFAULT_GAP, Solution


def solve(
    problem: Problem,
    *,
    gap: float = DEFAULT_GAP,
    time_limit_s: float | None = None,
    rows: tuple[Row, ...] = (),
    cutoff: float | None = None,
) -> Solution:
    """The assignment of least objective within `gap`, with a proven bound; `cutoff`: only better ones are of interest.

    Rows that no mask expresses are left out at first: an answer that keeps them all the same, or that there is none, is
    the answer; otherwise HiGHS solves the whole. At the time limit: the best assignment so far, its bound, not proven.
    """
    from llmpq.solver.exact.answer import closed
    from llmpq.solver.exact.answer import solve as solve_exactly
    from llmpq.solver.exact.masks import split_rows

    started = perf_counter()
    _, rest = split_rows(problem, rows)
    masks = tuple(row for row in rows if row not in rest)
    first = solve_exactly(problem, gap=gap, time_limit_s=time_limit_s, rows=masks, cutoff=cutoff)
    if not rest or first.status in ("infeasible", "cutoff", "time_limit"):
        return first
    if first.assignment is not None and all(row.holds(first.assignment) for row in rest):
        return first
    left = None if time_limit_s is None else max(0.0, time_limit_s - (perf_counter() - started))
    whole = solve_exactly(problem, gap=gap, time_limit_s=left, rows=rows, cutoff=cutoff)
    seconds = perf_counter() - started
    if whole.status in ("infeasible", "cutoff"):
        return replace(whole, seconds=seconds)
    bound = max(value for value in (first.bound, whole.bound) if value is not None)
    if whole.objective is None:
        return replace(whole, bound=bound, seconds=seconds)
    bound = min(bound, whole.objective)
    proven = closed(whole.objective, bound, gap)
    return replace(whole, bound=bound, proven=proven, status="optimal" if proven else "feasible", seconds=seconds)
