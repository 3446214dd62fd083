"""Fallback: the plan of least sensitivity where the default quality target cannot be met."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.plan import SERVED_TOKENS
from llmpq.planning.candidates import build_problem
from llmpq.planning.fit import FIT_LIMIT_S, any_plan, least_sensitive
from llmpq.planning.reasons import reasons
from llmpq.planning.search import Found, Start, search
from llmpq.planning.space import EVERYTHING, Space
from llmpq.program import Program
from llmpq.solver.problem import evaluate
from llmpq.workload import Serving

BUDGET_SHARE = 0.5  # of the time limit, for plans within a default budget, while there may be none
BUDGET_SLACK = 5e-4  # relative room above what was found, so that speed can still choose among equals

Explain = Callable[[Program, Space], tuple[str, ...]]


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
    explain: Explain = reasons,
) -> Answer:
    """The best plan of the space within the request's time limit.

    When the default budget cannot be met: the fastest plan whose sensitivity is within 0.1 % of the least that fits, with a
    notice. An explicit budget that cannot be met, or a cluster that is too small, raises InfeasibleError with the reasons.
    """
    target, limit = program.request.target, program.request.time_limit_s
    now, demanded = time.monotonic(), program.request.target.budget is None or program.request.target.explicit
    try:
        found = _fastest(program, space, target.budget, tuple(starts), now + limit, 1.0 if demanded else BUDGET_SHARE)
    except TimeLimitError:
        if demanded:
            raise
        found = None
    if found is not None:
        return Answer(found, target.budget, capacity_notices(program, found))
    if target.budget is None or target.explicit:
        raise InfeasibleError(explain(program, space))
    return _least_bad(program, space, target.budget, now + limit, explain)


def _least_bad(program: Program, space: Space, missed: float, deadline: float, explain: Explain) -> Answer:
    """The fastest plan of about the least sensitivity that fits, as the default budget was missed."""
    halfway = (time.monotonic() + deadline) / 2
    least = least_sensitive(program, space, halfway)
    if least is None:
        raise InfeasibleError(explain(program, space))
    sensitivity = evaluate(least.problem, least.assignment).sensitivity
    relaxed = sensitivity * (1.0 + BUDGET_SLACK)
    found = search(program, relaxed, space=space, starts=(_start(program, least, relaxed),), deadline=deadline)
    if found is None:  # a limit of the latency is in the way
        raise InfeasibleError(explain(program, space))
    return Answer(found, relaxed, (_notice(missed, sensitivity, least.proven), *capacity_notices(program, found)))


def _fastest(
    program: Program, space: Space, budget: float | None, starts: tuple[Start, ...], deadline: float, share: float
) -> Found | None:
    """The fastest plan within the budget, None when there is none: that is asked first, and what answers it is a start.

    `share` of the time is given to it while there may be none.
    """
    now = time.monotonic()
    doubtful = now + share * (deadline - now)
    try:
        some = any_plan(program, space, budget, min(doubtful, now + FIT_LIMIT_S))
    except TimeLimitError:
        return search(program, budget, space=space, starts=starts, deadline=doubtful)
    if some is None:
        return None
    return search(program, budget, space=space, starts=(*starts, _start(program, some, budget)), deadline=deadline)


def _start(program: Program, found: Found, budget: float | None) -> Start:
    return found.candidate, build_problem(program, found.candidate, budget), found.assignment


def capacity_notices(program: Program, found: Found) -> tuple[str, ...]:
    """That the plan serves fewer requests than arrive, if so."""
    workload = program.request.workload
    if not isinstance(workload, Serving):
        return ()
    capacity = SERVED_TOKENS / found.objective / workload.gen_len
    if capacity >= workload.rate_per_s:
        return ()
    limits = " within its limits of latency" if workload.has_limits else ""
    asked = f"{workload.rate_per_s:.4g} arrive"
    return (f"the plan serves {capacity:.4g} requests per second{limits}, {asked}: requests will queue; add devices or replicas",)


def _notice(budget: float, sensitivity: float, proven: bool) -> str:
    what = "the plan of least sensitivity that fits" if proven else "the least sensitive plan found in the time limit"
    missed = f"the default quality target of {budget:.4f} nats per token cannot be met on this cluster"
    return f"{missed}; this is {what}, {sensitivity:.4f}"
