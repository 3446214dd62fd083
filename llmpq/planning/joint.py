"""Joint planning: the best plan of a request with costs, of one pipeline or of several, of single devices or of groups."""

import time
from dataclasses import replace

from llmpq.plan import Optimality, Plan
from llmpq.planning.costing import costed
from llmpq.planning.fallback import Answer
from llmpq.planning.group_search import group_notices, search_groups
from llmpq.planning.make_plan import make_plan
from llmpq.planning.make_replicas import make_replicas
from llmpq.planning.replica_search import search_several
from llmpq.planning.search import ROUNDING, Found, Start
from llmpq.program import Program

__all__ = ["costed", "joint_plan", "replicated_plan"]

SOLVER = "exact search"
SINGLE_SHARE = 0.5  # of the time limit, for the best single pipeline, where several are allowed


def joint_plan(program: Program, starts: tuple[Start, ...] = ()) -> Program:
    """The program with the best plan for its costs and sensitivity; `starts`: plans to begin the search with.

    Raises InfeasibleError with the reasons, TimeLimitError when nothing was found in time.
    """
    if program.request.replicas > 1:
        return replicated_plan(program, starts)
    found = search_groups(program, starts)
    return _planned(program, found.answer, _single(found.program, found.answer, found.answer.found))


def replicated_plan(program: Program, starts: tuple[Start, ...] = ()) -> Program:
    """The program with the best plan of one pipeline or of several; one is looked for first, in half of the time.

    Several are all of single devices, or all of groups of one size. The gap is that of the search over all of them.
    Raises as `joint_plan` does.
    """
    request, now = program.request, time.monotonic()
    one = replace(program, request=replace(request, time_limit_s=SINGLE_SHARE * request.time_limit_s))
    first = search_groups(one, starts)
    best, answer = first.answer.found, first.answer
    deadline, told = now + request.time_limit_s, []
    for number, place in enumerate(first.places):
        until = time.monotonic() + (deadline - time.monotonic()) / (len(first.places) - number)
        told.append((place, search_several(place, answer.budget, best, request.replicas, until)))
    place, several = min(told, key=lambda item: item[1].objective)
    bound = min(each.bound for _, each in told)
    proven = several.objective - bound <= request.gap * several.objective * (1.0 + ROUNDING)
    if several.parts:
        optimality = Optimality(several.objective, bound, proven, SOLVER)
        plan = make_replicas(place, several, optimality, answer.budget)
    else:
        plan = _single(first.program, answer, replace(best, bound=bound, proven=proven))
    return _planned(program, answer, plan)


def _planned(program: Program, answer: Answer, plan: Plan) -> Program:
    """The program with the plan, which is on its own cluster, whatever groups it was made of."""
    own = replace(plan, cluster=program.request.cluster)
    return replace(program, plan=own, notices=program.notices + group_notices(program) + answer.notices)


def _single(program: Program, answer: Answer, found: Found) -> Plan:
    optimality = Optimality(found.objective, found.bound, found.proven, SOLVER)
    return make_plan(program, found.candidate, found.problem, found.assignment, optimality, answer.budget)
