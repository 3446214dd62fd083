"""Front: of rows of numbers, those that no other row is no worse than in the first three."""

from bisect import bisect_right, insort
from typing import TypeVar

Row = TypeVar("Row", bound=tuple[int, ...])


def undominated(rows: list[Row]) -> list[Row]:
    """Sorted; of equal ones the first. A staircase of (second, third) grows as the first does: O(n log n) for short stairs."""
    kept: list[Row] = []
    stairs: list[tuple[int, int]] = []  # second rises, third falls
    for row in sorted(rows):
        second, third = row[1], row[2]
        at = bisect_right(stairs, second, key=lambda step: step[0])
        if at and stairs[at - 1][1] <= third:
            continue
        at -= at > 0 and stairs[at - 1][0] == second
        while at < len(stairs) and stairs[at][1] >= third:
            del stairs[at]
        insort(stairs, (second, third))
        kept.append(row)
    return kept
