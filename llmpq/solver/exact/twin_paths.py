"""Twin of the path kernels: shortest paths over stages, and the least path with a budget, in plain Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from llmpq.solver.exact.kernels import FAR
from llmpq.solver.exact.twin_grid import Plain


@dataclass(slots=True)
class Items:
    """Stages as lists, and the low ends of the box."""

    start: list[int]
    stop: list[int]
    figures: list[list[float]]
    low: tuple[float, float]


def item_oracle(plain: Plain, items: Items, at: list[float]) -> tuple[float, list[float]]:
    """Shortest path over the items at what the multipliers charge: bound and slope."""
    n, width = plain.devices, plain.layers + 1
    end, share, price = n * width, plain.share(at), at[2 * n]
    total, (low_prefill, low_decode) = plain.decode_sum + plain.round_trip * share, items.low
    rest, via = [FAR] * end + [0.0], [-1] * end
    for x in range(len(items.start) - 1, -1, -1):
        after = rest[items.stop[x]]
        if after >= FAR:
            continue
        f, s = items.figures[x], items.start[x]
        j = s // width
        over_prefill = f[2] - low_prefill if f[2] > low_prefill else 0.0
        over_decode = f[3] - low_decode if f[3] > low_decode else 0.0
        charged = f[0] + total * f[1] + (plain.theta + price) * f[4] + at[j] * over_prefill + at[n + j] * over_decode
        if after + charged < rest[s]:
            rest[s], via[s] = after + charged, x
    value = rest[plain.first * width]
    if value >= FAR:
        return FAR, [0.0] * (2 * n + 1)
    slowest = (1.0 - share) * plain.decode_slowest if plain.round_trip > 0.0 else plain.decode_slowest
    constant = plain.prefill_slowest * low_prefill + slowest * low_decode
    return value + constant - (price * plain.budget if price > 0.0 else 0.0), _slope(plain, items, via)


def _slope(plain: Plain, items: Items, via: list[int]) -> list[float]:
    n, width = plain.devices, plain.layers + 1
    slope = [items.low[0]] * n + [items.low[1]] * n + [0.0]
    trip, total, s = 0.0, 0.0, plain.first * width
    while s != n * width:
        f = items.figures[via[s]]
        j = s // width
        slope[j] = max(f[2], items.low[0])
        slope[n + j] = max(f[3], items.low[1])
        trip += f[1]
        total += f[4]
        s = items.stop[via[s]]
    if plain.round_trip > 0.0:
        for j in range(n):
            slope[n + j] -= trip / plain.micro_batches
    slope[2 * n] = total - plain.budget if plain.budget < FAR else 0.0
    return slope


@dataclass(slots=True)
class Path:
    """A path from the source to a state: its relaxed costs, its sensitivity, its last item, what came before."""

    work: float
    slow: float
    sens: float
    key: float
    item: int
    parent: "Path | None"


@dataclass(slots=True)
class Finder:
    """Finds what best_path of kernels.c finds, path by path in the same order; numbers, rows and rest as there."""

    first: list[int]
    stop: list[int]
    rows: list[list[float]]
    rest: list[list[float]]
    numbers: list[float]
    single: bool
    most: int
    count: int = 0
    dropped: float = FAR
    least: float = FAR
    best: Path | None = None

    def run(self, source: int) -> None:
        states = len(self.first) - 1
        self.least = self.numbers[0]
        waiting: list[list[Path]] = [[] for _ in range(states)]
        waiting[source] = [Path(self.numbers[5], self.numbers[6], 0.0, self._key(self.numbers[5]), -1, None)]
        self.count = 1
        for state, paths in enumerate(waiting):
            paths.sort(key=lambda path: (path.key, path.slow, path.sens))
            for path in self._front(paths):
                self._extend(path, state, waiting)

    def _key(self, work: float) -> float:
        return float(floor(work / self.numbers[4])) if self.numbers[4] > 0.0 else work

    def _front(self, paths: list[Path]) -> list[Path]:
        """Without paths that an earlier one is no worse than, up to a bucket."""
        budget, bucket = self.numbers[3], self.numbers[4]
        kept: list[Path] = []
        lowest = FAR
        for path in paths:
            if budget >= FAR:
                dominated = bool(kept) if self.single else lowest <= path.slow + bucket
            else:
                dominated = any(old.slow <= path.slow + bucket and old.sens <= path.sens for old in kept)
            if not dominated:
                lowest = min(lowest, path.slow)
                kept.append(path)
        return kept

    def _extend(self, path: Path, state: int, waiting: Sequence[list[Path]]) -> None:
        share, price, budget = self.numbers[1:4]
        mixed = share * path.work + (1.0 - share) * path.slow + price * path.sens
        for t in range(self.first[state], self.first[state + 1]):
            mix, end = mixed + self.rows[3][t], self.stop[t]
            if mix >= self.least:
                break
            work, slow, sens = path.work + self.rows[0][t], path.slow + self.rows[1][t], path.sens + self.rows[2][t]
            if work + self.rest[0][end] >= self.least or sens + self.rest[2][end] > budget:
                continue
            if not self.single and slow + self.rest[1][end] >= self.least:
                continue
            if self.count >= self.most:
                self.dropped = min(self.dropped, mix)
                continue
            self.count += 1
            new = Path(work, slow, sens, self._key(work), t, path)
            if end == len(self.first) - 1:
                self.least, self.best = (work if self.single or work > slow else slow), new
            else:
                waiting[end].append(new)

    def items(self) -> list[int]:
        """Of the best path, in order."""
        found, path = [], self.best
        while path is not None and path.item >= 0:
            found.append(path.item)
            path = path.parent
        return found[::-1]
