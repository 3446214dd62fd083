"""Largest: the last number, or the first of a row of changes, for which an answer is yes, with few questions."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def largest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest n of [low, high] for which it holds, if it holds up to some n and not beyond; None when not even at low."""
    if not holds(low):
        return None
    step = 1
    while low < high and holds(min(high, low + step)):
        low, step = min(high, low + step), 2 * step
    end = min(high + 1, low + step)  # does not hold
    while end - low > 1:
        middle = (low + end) // 2
        low, end = (middle, end) if holds(middle) else (low, middle)
    return low


def first(holds: Callable[[T], bool], items: Sequence[T]) -> T | None:
    """The first item for which it holds, if it holds for all after it; None when not even for the last."""
    count = len(items)
    if not count or not holds(items[-1]):
        return None
    failing = largest(lambda n: n == 0 or not holds(items[n - 1]), 0, count - 1) or 0  # this many at the start
    return items[failing]
