"""The search over tensor-parallel groups: pipelines of groups of 8, 4, 2 ranks and of single devices, with one bound for all."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import inf

from llmpq.costs.shard import unsplittable
from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.hardware.groups import grouped
from llmpq.hardware.support import tensor_parallel_sizes
from llmpq.planning.costing import on_groups
from llmpq.planning.fallback import BUDGET_SHARE, Answer, capacity_notices, search_or_explain
from llmpq.planning.orders import identical_devices, named_devices
from llmpq.planning.search import ROUNDING, Found, Search, Start, out_of_time
from llmpq.planning.space import EVERYTHING
from llmpq.program import Program, Request

TURN = 0.02  # of the time limit, for pipelines of one size of groups before those of another get their turn
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
    now, limit = time.monotonic(), program.request.time_limit_s
    others = group_programs(program)
    if not others:
        return Grouped(program, search_or_explain(program, starts=starts), (program,))
    places = (program, *others)
    budget, gap, deadline = program.request.target.budget, program.request.gap, now + limit
    searches = [Search(place, budget, EVERYTHING, gap, deadline, identical_devices(place)) for place in places]
    for start in starts:
        searches[0].offer(*start)
    _in_turns(searches, now + BUDGET_SHARE * limit, deadline, TURN * limit)
    bound = min(each.bound for each in searches)
    best = _best(searches)
    if best is None:
        return _without_budget(program, others, starts, bound, deadline)
    where, found = best
    proven = found.objective - bound <= gap * abs(found.objective) * (1 + ROUNDING)
    told = replace(found, bound=bound, proven=proven)
    return Grouped(where, Answer(told, budget, capacity_notices(where, told)), places)


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


def _in_turns(searches: list[Search], doubtful: float, deadline: float, turn_s: float) -> None:
    """A turn of each, those of groups first, then always of the one of the least bound, each below the best of all.

    Ends when nothing is left that could win, at the deadline, or, while nothing was found, when that is `doubtful`.
    """
    for each in searches:
        each.begin()
    waiting: list[Search] = [*searches[1:], searches[0]]
    going: list[Search] = []
    while waiting or going:
        best = _best(searches)
        if time.monotonic() >= (doubtful if best is None else deadline):
            return
        each = waiting.pop(0) if waiting else min(going, key=lambda search: search.heap[0][0])
        if best is not None and best[0] is not each.program:
            each.below = min(each.below, best[1].objective * (1.0 - each.gap))
        going = [other for other in going if other is not each]
        if not each.proceed(time.monotonic() + turn_s):
            going.append(each)


def _best(searches: list[Search]) -> tuple[Program, Found] | None:
    """The best pipeline that any of them found, and the program that it was found on."""
    found = ((each.program, each.best) for each in searches if each.best is not None)
    return min(found, key=lambda pair: pair[1].objective, default=None)


def _without_budget(
    program: Program, others: tuple[Program, ...], starts: tuple[Start, ...], bound: float, deadline: float
) -> Grouped:
    """As no groups keep the budget: single devices; where they do not either, whichever loses least."""
    found: list[Grouped] = []
    errors: list[InfeasibleError] = []
    target, places, timed_out = program.request.target, (program, *others), False
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
        except TimeLimitError:
            timed_out = True
            continue
        if answer.budget == target.budget:
            together = min(bound, answer.found.bound)
            proven = answer.found.proven and together >= answer.found.bound
            return Grouped(each, replace(answer, found=replace(answer.found, bound=together, proven=proven)), places)
        found.append(Grouped(each, answer, places))
    if not found and timed_out:
        raise out_of_time(program)
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
