"""Search by hand: the partition that measures best, from the balanced one, with worse ones measured on every side of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence

Partition = tuple[int, ...]
STEPS = (-1, 1, -2, 2)  # layers across a boundary: two neighbours on each side are measured


def partitions(layers: int, stages: int) -> Iterator[Partition]:
    """Every way of giving each stage at least one layer."""
    if stages == 1:
        yield (layers,)
        return
    for first in range(1, layers - stages + 2):
        for rest in partitions(layers - first, stages - 1):
            yield (first, *rest)


def balanced(possible: Iterable[Partition], speeds: tuple[float, ...]) -> Partition | None:
    """The partition whose slowest stage has the least layers for its speed."""
    return min(possible, key=lambda lengths: sorted((n / s for n, s in zip(lengths, speeds)), reverse=True), default=None)


def neighbours(lengths: Partition) -> Iterator[Partition]:
    """Partitions with one or two layers moved across one boundary."""
    for boundary in range(len(lengths) - 1):
        for step in STEPS:
            moved = list(lengths)
            moved[boundary] += step
            moved[boundary + 1] -= step
            if min(moved) >= 1:
                yield tuple(moved)


def climb(start: Partition, possible: set[Partition], measure: Callable[[Partition], float]) -> dict[Partition, float]:
    """Tokens per second of every partition measured; the best of them has no better neighbour among the possible ones."""
    found = {start: measure(start)}
    best = start
    while True:
        for other in neighbours(best):
            if other in possible and other not in found:
                found[other] = measure(other)
                if found[other] > found[best]:
                    break
        ahead = max(found, key=lambda lengths: found[lengths])
        if ahead == best:
            return found
        best = ahead


def dealt(shares: Sequence[int]) -> list[tuple[int, ...]]:
    """Requests dealt out in turn, each engine its share: the next goes to the one that is furthest behind."""
    total, hands = sum(shares), [list[int]() for _ in shares]
    for number in range(total):
        behind = max(range(len(shares)), key=lambda engine: shares[engine] * (number + 1) / total - len(hands[engine]))
        hands[behind].append(number)
    return [tuple(hand) for hand in hands]
