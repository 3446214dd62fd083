"""Reasons: why no candidate is feasible, told of the one that is short of the least."""

from dataclasses import replace

from llmpq.costs import CostTable
from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.planning.candidates import Candidate, Group, build_problem
from llmpq.planning.option_sets import OptionSet, live_bytes
from llmpq.planning.orders import Order
from llmpq.planning.search import rows_of
from llmpq.planning.space import EVERYTHING, Space
from llmpq.program import Program
from llmpq.solver.explain import explain_infeasible
from llmpq.solver.milp import Shortage, shortage
from llmpq.solver.problem import Problem

SHORTAGE_LIMIT_S = 5.0


def reasons(program: Program, space: Space = EVERYTHING) -> tuple[str, ...]:
    """Devices and bytes short, then a minimal set of demands in conflict; of the candidate that is short of the least."""
    candidate, problem, short = nearest(program, space)
    return explain_infeasible(problem, rows_of(program, candidate), program.request.rules, short)


def nearest(program: Program, space: Space) -> tuple[Candidate, Problem, Shortage | None]:
    """The candidate, its problem and what it is short of at any quality; None when not memory alone is in the way."""
    told: list[tuple[float, int, Candidate, Problem, Shortage | None]] = []
    for group in roomiest(program, space.groups(program)):
        for restrict in space.restrictions:
            problem = restrict(build_problem(program, group.candidate(), program.request.target.budget))
            found = _shortage(program, group.candidate(), problem)
            total = float("inf") if found is None else float(sum(missing for _, missing in found))
            told.append((total, -len(group.devices), group.candidate(), problem, found))
    return min(told, key=lambda item: item[:2])[2:]


def _shortage(program: Program, candidate: Candidate, problem: Problem) -> Shortage | None:
    try:
        return shortage(replace(problem, sensitivity_budget=None), rows_of(program, candidate), SHORTAGE_LIMIT_S)
    except (InfeasibleError, TimeLimitError):
        return None


def roomiest(program: Program, groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups whose activations and logits no other group of the same devices undercuts."""
    alike: dict[tuple[Order, int | None, int | None, OptionSet], list[tuple[int, Group, tuple[int, int]]]] = {}
    for place, group in enumerate(groups):
        key = group.devices, group.in_flight, group.resident, group.options
        alike.setdefault(key, []).append((place, group, _activations(program, group)))
    kept = [
        (place, group)
        for several in alike.values()
        for place, group, needs in several
        if not any(_undercuts(other, needs, earlier < place) for earlier, _, other in several if earlier != place)
    ]
    return tuple(group for _, group in sorted(kept, key=lambda item: item[0]))


def _undercuts(a: tuple[int, int], b: tuple[int, int], earlier: bool) -> bool:
    """Whether a needs no more than b in both, of equals the earlier."""
    return a[0] <= b[0] and a[1] <= b[1] and (a != b or earlier)


def _activations(program: Program, group: Group) -> tuple[int, int]:
    costs: CostTable = program.require("costs")
    phases = (costs.phase("prefill", group.prefill_micro_batch), costs.phase("decode", group.decode_micro_batch))
    live = max(live_bytes(phases, device, group.options) for device in group.devices)
    return live, max(phase.logits_bytes for phase in phases)
