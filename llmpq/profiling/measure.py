"""Measuring a profile: point by point, each kept as soon as it is there, until the grid or the time ends."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, replace
from statistics import median, quantiles
from typing import Protocol, TypeVar

from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Profile
from llmpq.precision import Precision
from llmpq.profiling.probe import Clock, PassTimes
from llmpq.profiling.sizes import SLOW_S, Extent, Size, enough, hopeless

QUIET = 0.9  # share of a pass in which its thread ran
CLOCK_S = 1e-9  # resolution of time.perf_counter; sizes are compared by the logarithm of their times
Keep = Callable[[Profile], None]
Progress = Callable[[str, int, int], None]


class Pass(Protocol):
    """What one pass took, and the share of it in which its thread ran."""

    @property
    def total_s(self) -> float: ...

    @property
    def busy(self) -> float: ...


T = TypeVar("T", bound=Pass)


class Measured(Protocol):
    """What can be timed pass by pass: a Probe."""

    def pass_times(self, rows: int, tokens: int, context: int) -> PassTimes: ...


def measure(
    profile: Profile,
    precisions: Sequence[Precision],
    max_positions: int,
    extent: Extent,
    probe_of: Callable[[Precision], Measured],
    keep: Keep,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> Profile:
    """The profile with the points of the grid that it lacked, `keep` called with it after each.

    Every precision gets an equal share of the seconds that are left; sizes go from quick to slow, and what the share is not
    expected to suffice for is left out.
    """
    sizes, deadline, told = extent.sizes(max_positions), clock() + extent.limit_s, progress or (lambda what, done, total: None)
    total = len(sizes) * len(precisions)
    for index, precision in enumerate(precisions):
        have = {point.key for point in profile.points}
        todo = [size for size in sizes if (precision.name, *astuple(size)) not in have]
        share = (deadline - clock()) / (len(precisions) - index)
        if not todo or share <= 0:
            continue
        for done, point in enumerate(_points(precision, todo, probe_of(precision), clock() + share, clock), 1):
            profile = replace(profile, points=(*profile.points, point))
            keep(profile)
            told(f"measuring: {precision.name}, {point.rows} x {point.tokens} tokens", len(sizes) * index + done, total)
    return profile


def _points(precision: Precision, sizes: Iterable[Size], probe: Measured, deadline: float, clock: Clock) -> Iterable[Point]:
    spent, work = 0.0, 1  # seconds and work of the point before
    for size in sizes:
        if clock() + spent * size.work / work > deadline:
            return
        start = clock()
        yield measure_point(precision, size, probe)
        spent, work = clock() - start, size.work


def measure_point(precision: Precision, size: Size, probe: Measured) -> Point:
    """What the passes of one size took."""
    passes = repeated(lambda: probe.pass_times(size.rows, size.tokens, size.context))
    kinds = range(len(passes[0].layers_s))
    return Point(
        precision=precision.name,
        rows=size.rows,
        tokens=size.tokens,
        context=size.context,
        layers=tuple(_timing_or_none([times.layers_s[kind] for times in passes]) for kind in kinds),
        first=timing([times.first_s for times in passes]),
        last=timing([times.last_s for times in passes]),
        rank=timing([times.rank_s for times in passes]),
    )


def repeated(run: Callable[[], T]) -> list[T]:
    """Passes of one size, after one that only warms up; those that other processes disturbed count only if all were."""
    first = run()
    passes = [first] if first.total_s > SLOW_S else []
    while not (enough(seconds_in(quiet(passes))) or hopeless(seconds_in(passes))):
        passes.append(run())
    return quiet(passes) or passes


def quiet(passes: Sequence[T]) -> list[T]:
    """The passes in which no other process had this thread's core for long."""
    return [times for times in passes if times.busy >= QUIET]


def seconds_in(passes: Sequence[T]) -> list[float]:
    return [times.total_s for times in passes]


def timing(seconds: Sequence[float]) -> Timing:
    """Median, and the first and last tenth; of a single pass three times the same. Nothing takes less than CLOCK_S."""
    if len(seconds) == 1:
        found = (seconds[0],) * 3
    else:
        tenths = quantiles(seconds, n=10, method="inclusive")
        found = median(seconds), tenths[0], tenths[-1]
    return Timing(*(max(value, CLOCK_S) for value in found))


def _timing_or_none(seconds: Sequence[float | None]) -> Timing | None:
    known = [found for found in seconds if found is not None]
    return timing(known) if known else None
