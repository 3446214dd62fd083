"""Fallback: the plan of least sensitivity where the default quality target cannot be met."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llmpq.errors import InfeasibleError
from llmpq.planning.candidates import build_problem
from llmpq.planning.reasons import reasons, roomiest
from llmpq.planning.search import EVERYTHING, Found, Restriction, Space, Start, search
from llmpq.program import Program
from llmpq.solver.problem import Cells, Problem, evaluate

LEAST_GAP = 1e-4  # relative, of the least sensitivity
BUDGET_SLACK = 5e-4  # relative room above what was found, so that speed can still choose among equals


@dataclass(frozen=True, slots=True)
class Answer:
    """The best plan, the budget that it kept, and what the user should know."""

    found: Found
    budget: float | None
    notices: tuple[str, ...] = ()


def search_or_explain(
    program: Program,
    space: Space = EVERYTHING,
    starts: Iterable[Start] = (),
    explain: Callable[[Program, Space], tuple[str, ...]] = reasons,
) -> Answer:
    """The best plan of the space within the request's time limit.

    When the default budget cannot be met: the fastest plan whose sensitivity is within 0.1 % of the least that fits, with a
    notice. An explicit budget that cannot be met, or a cluster that is too small, raises InfeasibleError with the reasons.
    """
    target = program.request.target
    deadline = time.monotonic() + program.request.time_limit_s
    found = search(program, target.budget, space=space, starts=starts, deadline=deadline)
    if found is not None:
        return Answer(found, target.budget)
    if target.budget is None or target.explicit:
        raise InfeasibleError(explain(program, space))
    least = _least_sensitive(program, space, deadline)
    if least is None:
        raise InfeasibleError(explain(program, space))
    sensitivity = evaluate(least.problem, least.assignment).sensitivity
    relaxed = sensitivity * (1.0 + BUDGET_SLACK)
    return Answer(
        _fastest(program, space, least, relaxed, deadline), relaxed, (_notice(target.budget, sensitivity, least.proven),)
    )


def _notice(budget: float, sensitivity: float, proven: bool) -> str:
    what = "the plan of least sensitivity that fits" if proven else "the least sensitive plan found in the time limit"
    missed = f"the default quality target of {budget:.4f} nats per token cannot be met on this cluster"
    return f"{missed}; this is {what}, {sensitivity:.4f}"


def _least_sensitive(program: Program, space: Space, deadline: float) -> Found | None:
    """The least sensitive plan, whatever its speed: only sizes whose activations no other pair undercuts can matter."""
    restrictions = tuple(_without_seconds(restrict) for restrict in space.restrictions)
    narrowed = replace(space, restrictions=restrictions, accept=roomiest)
    return search(program, None, space=narrowed, gap=LEAST_GAP, deadline=deadline)


def _without_seconds(restrict: Restriction) -> Restriction:
    return lambda problem: without_seconds(restrict(problem))


def _fastest(program: Program, space: Space, least: Found, budget: float, deadline: float) -> Found:
    """The fastest plan within the budget; the least sensitive one itself if the time is up."""
    start = (least.candidate, build_problem(program, least.candidate, budget), least.assignment)
    found = search(program, budget, space=space, starts=(start,), deadline=deadline)
    assert found is not None  # it starts with one
    return found


def without_seconds(problem: Problem) -> Problem:
    """The problem whose objective is the sum of sensitivity, in units of the largest."""

    def none(cells: Cells) -> Cells:
        return tuple(tuple(tuple(None if cell is None else 0.0 for cell in row) for row in kind) for kind in cells)

    nothing = tuple(0.0 for _ in problem.devices)
    ends = {end: replace(getattr(problem, end), prefill_s=nothing, decode_s=nothing) for end in ("first_stage", "last_stage")}
    links = tuple(nothing for _ in problem.devices)
    largest = max((abs(value) for row in problem.sensitivity for value in row), default=0.0) or 1.0
    return replace(
        problem,
        prefill_s=none(problem.prefill_s),
        decode_s=none(problem.decode_s),
        link_prefill_s=links,
        link_decode_s=links,
        theta=1.0 / largest,
        sensitivity_budget=None,
        gen_len=1,
        **ends,
    )
