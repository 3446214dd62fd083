"""Joint planning: the costs of a request and the best plan under them, for answers that plan again."""

from dataclasses import replace

from llmpq.costs import derive_costs
from llmpq.hardware.support import compute_dtype
from llmpq.plan import Optimality, Plan
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.planning.fallback import search_or_explain
from llmpq.planning.make_plan import make_plan
from llmpq.planning.search import Start
from llmpq.program import Program


def costed(program: Program) -> Program:
    """The program with the compute dtype and the cost table of its request; notices tell what the engine cannot use.

    Raises InfeasibleError when the engine runs on none of the devices.
    """
    request = program.request
    limits = engine_limits(program.graph, request.cluster, request.precisions, request.engine)
    dtype = compute_dtype(tuple(device.type for device in limits.usable), request.engine)
    asked = (program.graph, request.cluster, request.workload, request.precisions, dtype, request.engine)
    costs = derive_costs(*asked, profile=request.profile)
    costs = without_devices(costs, limits.usable)
    return replace(program, compute_dtype=dtype, costs=costs, notices=program.notices + limits.notices)


def joint_plan(program: Program, starts: tuple[Start, ...] = ()) -> Program:
    """The program with the best plan for its costs and sensitivity; `starts`: plans to begin the search with.

    Raises InfeasibleError with the reasons, TimeLimitError when nothing was found in time.
    """
    answer = search_or_explain(program, starts=starts)
    found = answer.found
    optimality = Optimality(found.objective, found.bound, found.proven, "exact search")
    plan: Plan = make_plan(program, found.candidate, found.problem, found.assignment, optimality, answer.budget)
    return replace(program, plan=plan, notices=program.notices + answer.notices)
