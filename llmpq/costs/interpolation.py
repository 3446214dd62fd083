"""Interpolation between measured sizes, and beyond them."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import exp, log

STEEPEST = 2.0  # growth beyond the grid, as a power of the size: attention of long prompts
_QUANTILE = 0.9

Lengths = Mapping[int, float]  # tokens or context -> seconds
Grid = Mapping[int, Lengths]  # by sequences


def interpolate(grid: Grid, rows: float, length: float) -> float:
    """Seconds at a size: along the lengths of every measured number of sequences, then between those.

    A number of sequences that was measured at one length grows with the length as the nearest that was measured at several.
    """
    wide = {count: lengths for count, lengths in grid.items() if len(lengths) > 1}

    def seconds(count: int) -> float:
        if count in wide or not wide:
            return along(grid[count], length)
        like = wide[min(wide, key=lambda other: abs(log(other / count)))]
        ((known, found),) = grid[count].items()
        return found * along(like, length) / along(like, known)

    return along({count: seconds(count) for count in grid}, rows)


def along(points: Lengths, x: float) -> float:
    """Through the two nearest points: a straight line where it grows no faster than in proportion, as launches and weights that
    are read once make it; else a power of the size, as attention makes it.

    Outside of the points the same goes on: it never falls, and no power is above STEEPEST. (Powers alone would be too high
    between points of a time that has a fixed part, and too low beyond them.)
    """
    xs = sorted(points)
    if len(xs) == 1:
        return points[xs[0]]
    right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    a, b = xs[right - 1], xs[right]
    power, inside = log(points[b] / points[a]) / log(b / a), a <= x <= b
    if power > 1:
        start = b if x > b else a
        return points[start] * exp((power if inside else min(power, STEEPEST)) * log(x / start))
    if inside:
        share = (x - a) / (b - a)
        return (1 - share) * points[a] + share * points[b]
    growth = max(0.0, (points[b] - points[a]) / (b - a))
    return points[b] + growth * (x - b) if x > b else points[a] - growth * (a - x)


def left_out(grids: Iterable[Grid]) -> list[float]:
    """|log(measured / interpolated)| of every inner point along the lengths, each left out of its own interpolation."""
    lines = [lengths for grid in grids for lengths in grid.values()]
    return [
        abs(log(line[x] / along({other: line[other] for other in line if other != x}, x)))
        for line in lines
        for x in sorted(line)[1:-1]
    ]


def nine_tenths(values: list[float]) -> float:
    """The value that nine of ten do not exceed; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(_QUANTILE * len(values)))] if values else 0.0
