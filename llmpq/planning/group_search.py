"""The search over tensor-parallel groups: pipelines of groups of 8, 4 and 2 ranks, then of single devices, one bound for all."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

from llmpq.costs.shard import unsplittable
from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.hardware.groups import grouped
from llmpq.hardware.support import tensor_parallel_sizes
from llmpq.planning.costing import on_groups
from llmpq.planning.fallback import Answer, capacity_notices, search_or_explain
from llmpq.planning.orders import identical_devices, named_devices
from llmpq.planning.search import EVERYTHING, ROUNDING, Found, Search, Start
from llmpq.program import Program, Request

GROUPS_SHARE = 0.5  # of the time limit, for pipelines of groups, which are few: the rest is for those of single devices
PROFILED = "--profile tells nothing of tensor-parallel groups: none are planned"
NAMED = "constraints name {names}, so every stage is a single device: tensor-parallel groups are not planned"


@dataclass(frozen=True, slots=True)
class Grouped:
    """An answer, and the program that it was found on: that of single devices or of groups. `places`: all that were asked."""

    program: Program
    answer: Answer
    places: tuple[Program, ...]


def group_programs(program: Program) -> tuple[Program, ...]:
    """The program on groups of every size that engine, model and cluster allow, the largest first."""
    return tuple(found for ranks in _sizes(program) if (found := _costed_on(program, ranks)) is not None)


def group_notices(program: Program) -> tuple[str, ...]:
    """Why no groups are planned where the engine has them, and the cluster, too."""
    request = program.request
    sizes = tuple(size for size in tensor_parallel_sizes(request.engine) if size <= request.tensor_parallel)
    if not any(grouped(request.cluster, size) for size in sizes):
        return ()
    if request.profile is not None:
        return (PROFILED,)
    names = _named(request)
    if names:
        return (NAMED.format(names=", ".join(names)),)
    why = unsplittable(program.graph, min(sizes))
    return () if why is None else (f"no tensor-parallel groups: {why}",)


def search_groups(program: Program, starts: tuple[Start, ...] = ()) -> Grouped:
    """The best pipeline of single devices or of groups, all of one size, within the request's time limit.

    Its bound holds for both. Raises as `search_or_explain` does.
    """
    others = group_programs(program)
    if not others:
        return Grouped(program, search_or_explain(program, starts=starts), (program,))
    deadline = time.monotonic() + program.request.time_limit_s
    budget, gap = program.request.target.budget, program.request.gap
    best, bound = _best_of(others, budget, gap, time.monotonic() + GROUPS_SHARE * program.request.time_limit_s)
    if best is None:
        return _without_budget(program, others, starts, bound, deadline)
    single, known = _search(program, budget, gap, deadline, best[1].objective, starts)
    where, found = best if single is None else (program, single)
    bound = min(bound, known)
    proven = found.objective - bound <= gap * abs(found.objective) * (1 + ROUNDING)
    told = replace(found, bound=bound, proven=proven)
    return Grouped(where, Answer(told, budget, capacity_notices(where, told)), (program, *others))


def best_on_groups(program: Program, planner: Callable[[Program], Answer]) -> Grouped:
    """The best answer of a planner that knows single devices, asked of them and of groups of every size; for baselines.

    The time limit is shared out. Raises InfeasibleError, that of single devices, when there is none.
    """
    places = (program, *group_programs(program))
    limit, found, errors = program.request.time_limit_s / len(places), [], []
    for place in places:
        try:
            answer = planner(replace(place, request=replace(place.request, time_limit_s=limit)))
        except (InfeasibleError, TimeLimitError) as error:
            errors.append(error)
            continue
        found.append(Grouped(place, answer, places))
    if not found:
        raise errors[0]
    return min(found, key=lambda item: (_budget_of(item), item.answer.found.objective))


def _budget_of(item: Grouped) -> float:
    return inf if item.answer.budget is None else item.answer.budget


def _best_of(
    programs: tuple[Program, ...], budget: float | None, gap: float, deadline: float
) -> tuple[tuple[Program, Found] | None, float]:
    """The best pipeline of groups of any size, and a bound of all."""
    best: tuple[Program, Found] | None = None
    bound = inf
    for number, program in enumerate(programs):
        now = time.monotonic()
        until = now + (deadline - now) / (len(programs) - number)
        found, known = _search(program, budget, gap, until, inf if best is None else best[1].objective, ())
        best = best if found is None else (program, found)
        bound = min(bound, known)
    return best, bound


def _search(
    program: Program, budget: float | None, gap: float, deadline: float, known: float, starts: tuple[Start, ...]
) -> tuple[Found | None, float]:
    """The best pipeline better than `known`, None where none was found, and a bound of all of the program's."""
    below = known * (1.0 - gap) if known < inf else inf
    state = Search(program, budget, EVERYTHING, gap, deadline, identical_devices(program), below=below)
    for candidate, problem, assignment in starts:
        state.offer(candidate, problem, assignment)
    state.begin()
    state.proceed(deadline)
    better = state.best is not None and state.best.objective < known
    return state.best if better else None, state.bound


def _without_budget(
    program: Program, others: tuple[Program, ...], starts: tuple[Start, ...], bound: float, deadline: float
) -> Grouped:
    """As no groups keep the budget: single devices; where they do not either, whichever loses least."""
    found: list[Grouped] = []
    errors: list[InfeasibleError] = []
    target, places = program.request.target, (program, *others)
    for number, each in enumerate(places):
        left = max(0.0, deadline - time.monotonic()) / (len(places) - number)
        limited = replace(each, request=replace(each.request, time_limit_s=max(left, 1e-3)))
        try:
            answer = search_or_explain(limited, starts=starts if number == 0 else ())
        except InfeasibleError as error:
            errors.append(error)
            if target.explicit or target.budget is None:
                break
            continue
        if answer.budget == target.budget:
            together = min(bound, answer.found.bound)
            proven = answer.found.proven and together >= answer.found.bound
            return Grouped(each, replace(answer, found=replace(answer.found, bound=together, proven=proven)), places)
        found.append(Grouped(each, answer, places))
    if not found:
        raise errors[0]
    return min(found, key=lambda item: (_budget_of(item), item.answer.found.objective))


def _sizes(program: Program) -> Iterator[int]:
    """Ranks of groups, the largest first."""
    request = program.request
    if request.tensor_parallel > 1 and request.profile is None and not _named(request):
        for size in sorted(tensor_parallel_sizes(request.engine), reverse=True):
            if size <= request.tensor_parallel and unsplittable(program.graph, size) is None:
                yield size


def _costed_on(program: Program, ranks: int) -> Program | None:
    try:
        return on_groups(program, ranks)
    except InfeasibleError:  # the engine runs the parts of this size at no precision
        return None


def _named(request: Request) -> tuple[str, ...]:
    """Devices of the cluster that constraints name."""
    names = named_devices(request.rules)
    return tuple(device.name for device in request.cluster.devices if device.name.casefold() in names)
