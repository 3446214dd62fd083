"""Fit: whether a request has any plan at all, whatever its speed, and the least loss of quality of one that does."""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from llmpq.costs import derive_costs
from llmpq.errors import InfeasibleError
from llmpq.hardware.support import compute_dtype
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.planning.reasons import roomiest
from llmpq.planning.search import Found, search
from llmpq.planning.space import EVERYTHING, Restriction, Space
from llmpq.program import Program, Request
from llmpq.solver.problem import Cells, Problem, evaluate

FIT_LIMIT_S = 5.0  # of one question: hundredths of a second where memory decides, more where the user's rules are a puzzle
LEAST_GAP = 1e-4  # relative, of the least sensitivity


def asked(program: Program, request: Request) -> Program:
    """The program asked for something else, with costs of bytes alone: for questions of fit, not of speed."""
    cluster, precisions, engine = request.cluster, request.precisions, request.engine
    dtype = compute_dtype(tuple(device.type for device in cluster.devices), engine)
    costs = derive_costs(program.graph, cluster, request.workload, precisions, dtype, engine, timed=False, queue=request.queue)
    try:
        usable = engine_limits(program.graph, cluster, precisions, engine).usable
    except InfeasibleError:  # the engine runs on none of the devices, so nothing fits
        usable = ()
    return replace(program, request=request, compute_dtype=dtype, costs=without_devices(costs, usable), plan=None)


def fits(program: Program, time_limit_s: float = FIT_LIMIT_S) -> bool:
    """Whether a plan exists within the rules and an explicit budget.

    A default budget may be missed (the plan is then the least sensitive one), so it does not count.
    Raises TimeLimitError when the search is cut short before it knows.
    """
    target = program.request.target
    budget = target.budget if target.explicit else None
    return any_plan(program, EVERYTHING, budget, monotonic() + time_limit_s) is not None


def any_plan(program: Program, space: Space, budget: float | None, deadline: float) -> Found | None:
    """Some plan of the space within the budget, by an exact search without an objective; None when there is none.

    Raises TimeLimitError when the search is cut short before it knows.
    """
    return search(program, budget, space=_indifferent(space, _without_objective), gap=0.0, deadline=deadline)


def least_loss(program: Program, time_limit_s: float = FIT_LIMIT_S) -> float | None:
    """The least loss found in time, nats per token, of plans within an explicit budget; None when nothing fits."""
    target = program.request.target
    budget = target.budget if target.explicit else None
    found = least_sensitive(program, EVERYTHING, monotonic() + time_limit_s, budget)
    return None if found is None else evaluate(found.problem, found.assignment).sensitivity


def least_sensitive(program: Program, space: Space, deadline: float, budget: float | None = None) -> Found | None:
    """The least sensitive plan of the space, whatever its speed; unproven when the time is up, None if none keeps the budget."""
    some = any_plan(program, space, budget, max(deadline, monotonic() + FIT_LIMIT_S))
    if some is None:
        return None
    start = (some.candidate, without_seconds(some.problem), some.assignment)
    indifferent = _indifferent(space, without_seconds)
    return search(program, None, space=indifferent, starts=(start,), gap=LEAST_GAP, deadline=deadline)


def _indifferent(space: Space, without: Callable[[Problem], Problem]) -> Space:
    """The space without seconds or limits of them: only sizes whose activations no other pair undercuts can matter."""

    def indifferent(restrict: Restriction) -> Restriction:
        return lambda problem: without(restrict(problem))

    return replace(space, restrictions=tuple(map(indifferent, space.restrictions)), accept=roomiest, limited=False)


def _without_objective(problem: Problem) -> Problem:
    return replace(without_seconds(problem), theta=None, sensitivity_budget=problem.sensitivity_budget)


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
