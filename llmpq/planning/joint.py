"""Joint planning: the costs of a request and the best plan under them, for answers that plan again."""

import time
from dataclasses import replace

from llmpq.costs import derive_costs
from llmpq.hardware.support import compute_dtype
from llmpq.plan import Optimality, Plan
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.planning.fallback import Answer, search_or_explain
from llmpq.planning.make_plan import make_plan
from llmpq.planning.make_replicas import make_replicas
from llmpq.planning.replica_search import search_several
from llmpq.planning.search import ROUNDING, Found, Start
from llmpq.program import Program

SOLVER = "exact search"
SINGLE_SHARE = 0.5  # of the time limit, for the best single pipeline, where several are allowed


def costed(program: Program) -> Program:
    """The program with the compute dtype and the cost table of its request; notices tell what the engine cannot use.

    Raises InfeasibleError when the engine runs on none of the devices.
    """
    request = program.request
    limits = engine_limits(program.graph, request.cluster, request.precisions, request.engine)
    dtype = compute_dtype(tuple(device.type for device in limits.usable), request.engine)
    asked = (program.graph, request.cluster, request.workload, request.precisions, dtype, request.engine)
    costs = derive_costs(*asked, profile=request.profile, queue=request.queue)
    costs = without_devices(costs, limits.usable)
    return replace(program, compute_dtype=dtype, costs=costs, notices=program.notices + limits.notices)


def joint_plan(program: Program, starts: tuple[Start, ...] = ()) -> Program:
    """The program with the best plan for its costs and sensitivity; `starts`: plans to begin the search with.

    Raises InfeasibleError with the reasons, TimeLimitError when nothing was found in time.
    """
    if program.request.replicas > 1:
        return replicated_plan(program, starts)
    answer = search_or_explain(program, starts=starts)
    return replace(program, plan=_single(program, answer, answer.found), notices=program.notices + answer.notices)


def replicated_plan(program: Program, starts: tuple[Start, ...] = ()) -> Program:
    """The program with the best plan of one pipeline or of several; one is looked for first, in half of the time.

    The gap is that of the search over both. Raises as `joint_plan` does.
    """
    request, now = program.request, time.monotonic()
    one = replace(program, request=replace(request, time_limit_s=SINGLE_SHARE * request.time_limit_s))
    answer = search_or_explain(one, starts=starts)
    found = answer.found
    several = search_several(program, answer.budget, found, request.replicas, now + request.time_limit_s)
    proven = several.objective - several.bound <= request.gap * several.objective * (1.0 + ROUNDING)
    if several.parts:
        optimality = Optimality(several.objective, several.bound, proven, SOLVER)
        plan = make_replicas(program, several, optimality, answer.budget)
    else:
        plan = _single(program, answer, replace(found, bound=several.bound, proven=proven))
    return replace(program, plan=plan, notices=program.notices + answer.notices)


def _single(program: Program, answer: Answer, found: Found) -> Plan:
    optimality = Optimality(found.objective, found.bound, found.proven, SOLVER)
    return make_plan(program, found.candidate, found.problem, found.assignment, optimality, answer.budget)
