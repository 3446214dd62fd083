"""Interpolation between measured sizes, linear in log space."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import exp, log

STEEPEST = 2.0  # growth beyond the grid, as a power of the size: attention of long prompts
_QUANTILE = 0.9

Lengths = Mapping[int, float]  # tokens or context -> seconds
Grid = Mapping[int, Lengths]  # by sequences


def interpolate(grid: Grid, rows: float, length: float) -> float:
    """Seconds at a size: linear in log space, along the lengths of every measured number of sequences, then between those."""
    wide = {count: lengths for count, lengths in grid.items() if len(lengths) > 1} or grid
    return log_linear({count: log_linear(lengths, length) for count, lengths in wide.items()}, rows)


def log_linear(points: Lengths, x: float) -> float:
    """Through the two nearest points; outside of them their slope goes on, within [0, STEEPEST]."""
    xs = sorted(points)
    if len(xs) == 1:
        return points[xs[0]]
    right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    a, b = xs[right - 1], xs[right]
    slope = log(points[b] / points[a]) / log(b / a)
    if x > b:
        return points[b] * exp(min(max(slope, 0.0), STEEPEST) * log(x / b))
    return points[a] * exp((slope if x >= a else min(max(slope, 0.0), STEEPEST)) * log(x / a))


def left_out(grids: Iterable[Grid]) -> list[float]:
    """|log(measured / interpolated)| of every inner point along the lengths, each left out of its own interpolation."""
    lines = [lengths for grid in grids for lengths in grid.values()]
    return [
        abs(log(line[x] / log_linear({other: line[other] for other in line if other != x}, x)))
        for line in lines
        for x in sorted(line)[1:-1]
    ]


def nine_tenths(values: list[float]) -> float:
    """The value that nine of ten do not exceed; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(_QUANTILE * len(values)))] if values else 0.0
