"""LayerBound: the weak dual by layers: shortest paths over (device, layer) with memory and slowest stages priced."""

from dataclasses import dataclass
from itertools import accumulate

from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.weights import ONE, Weights, below

Row = list[int | None]
Costs = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What the multipliers charge for each part of an assignment whose first used device is `first`, in units of Weights."""

    scaled: Scaled
    weights: Weights
    first: int

    def cells(self, layer: int, j: int) -> Costs:
        """By option; None: unsupported."""
        scaled, kind, memory = self.scaled, self.scaled.kind[layer], self.weights.memory[j]
        per_prefill, per_decode = ONE + self.weights.prefill[j], self.weights.sum_decode + self.weights.decode[j]
        rows = (scaled.prefill[kind][j], scaled.decode[kind][j], scaled.bytes[kind][j])
        rest = zip(scaled.loss[layer], scaled.sensitivity[layer])
        return tuple(
            None
            if p is None or d is None or m is None
            else p * per_prefill + d * per_decode + m * memory + loss * ONE + s * self.weights.budget
            for p, d, m, (loss, s) in zip(*rows, rest)
        )

    def opening(self) -> int:
        """What the first used device pays on top of its layers."""
        return self._end(self.scaled.first, self.first)

    def ending(self, j: int) -> int | None:
        """What j pays on top of its layers as the last used device, the return of the tokens included; None: it may not be."""
        if not self.scaled.may_be_last(j):
            return None
        return self._end(self.scaled.last, j) + self.scaled.link_decode[j][self.first] * self._links(j)[1]

    def arc(self, j: int, after: int) -> int | None:
        """What j pays for sending to `after`; None: the devices between must not be left out."""
        if not self.scaled.may_follow(j, after):
            return None
        prefill, decode = self._links(j)
        return self.scaled.link_prefill[j][after] * prefill + self.scaled.link_decode[j][after] * decode

    def use(self, j: int) -> int:
        """What its capacity gives back."""
        return -self.weights.memory[j] * self.scaled.capacity[j]

    @property
    def constant(self) -> int:
        """What the budget, and the slowest stages as far as no device carries them, add."""
        weights = self.weights
        spare = (weights.total_prefill - sum(weights.prefill)) * weights.low[0]
        spare += (weights.total_decode - sum(weights.decode)) * weights.low[1]
        return spare - weights.budget * (self.scaled.budget or 0)

    def _links(self, j: int) -> tuple[int, int]:
        """With overlap a link's time is no part of its stage."""
        if self.scaled.overlap:
            return ONE, self.weights.sum_decode
        return ONE + self.weights.prefill[j], self.weights.sum_decode + self.weights.decode[j]

    def _end(self, ends: tuple[tuple[int, ...], ...], j: int) -> int:
        weights = self.weights
        seconds = ends[0][j] * (ONE + weights.prefill[j]) + ends[1][j] * (weights.sum_decode + weights.decode[j])
        return seconds + ends[2][j] * weights.memory[j]


@dataclass(frozen=True, slots=True)
class LayerBound:
    """Least costs; None: there is no way.

    cells [device][layer][option]; before [device][layer]: of all that precedes a stage opened there, `opening` included;
    after [device][layer]: of a stage opened there and all that follows; closing [device][layer]: of all that follows a
    stage that ends there; within [device][layer]: of the layers from there to the stage's end and all that follows.
    """

    costs: LayerCosts
    cells: list[list[Costs]]
    before: list[Row]
    after: list[Row]
    closing: list[Row]
    within: list[Row]

    @staticmethod
    def of(scaled: Scaled, weights: Weights, first: int) -> "LayerBound":
        costs = LayerCosts(scaled, weights, first)
        cells = [[costs.cells(i, j) for i in range(scaled.layers)] for j in range(scaled.devices)]
        tables: list[list[Row]] = [[[None] * (scaled.layers + 1) for _ in range(scaled.devices)] for _ in range(4)]
        found = LayerBound(costs, cells, *tables)
        furthest = [_furthest(scaled, weights, j) for j in range(scaled.devices)]
        least = [list(accumulate((_least(row) or 0 for row in rows), initial=0)) for rows in cells]
        for j in reversed(range(scaled.devices)):
            found._sweep_back(j, furthest[j], least[j])
        for j in range(scaled.devices):
            found._sweep_on(j, furthest, least)
        return found

    @property
    def value(self) -> int | None:
        """A lower bound of every objective in the box; None: nothing fits in it."""
        after = self.after[self.costs.first][0]
        return None if after is None else self.costs.opening() + after + self.costs.constant

    def _sweep_back(self, j: int, furthest: list[int], least: list[int]) -> None:
        layers = self.costs.scaled.layers
        for e in range(1, layers + 1):
            self.closing[j][e] = self._closing(j, e)
        for a in range(layers):
            ends = ((e, self.closing[j][e]) for e in range(a + 1, furthest[a] + 1))
            best = _least([least[e] - least[a] + rest for e, rest in ends if rest is not None])
            self.after[j][a] = None if best is None else self.costs.use(j) + best
        for i in range(1, layers + 1):
            ends = ((e, self.closing[j][e]) for e in range(i, layers + 1))
            self.within[j][i] = _least([least[e] - least[i] + rest for e, rest in ends if rest is not None])

    def _closing(self, j: int, e: int) -> int | None:
        if e == self.costs.scaled.layers:
            return self.costs.ending(j)
        following = ((self.costs.arc(j, k), self.after[k][e]) for k in range(j + 1, self.costs.scaled.devices))
        return _least([arc + rest for arc, rest in following if arc is not None and rest is not None])

    def _sweep_on(self, j: int, furthest: list[list[int]], least: list[list[int]]) -> None:
        if j == self.costs.first:
            self.before[j][0] = self.costs.opening()
        for i in range(j):
            arc = self.costs.arc(i, j)
            for s, start in enumerate(self.before[i]):
                if start is None or arc is None:
                    continue
                for a in range(s + 1, min(furthest[i][s], self.costs.scaled.layers - 1) + 1):
                    self.before[j][a] = _least([self.before[j][a], start + self.costs.use(i) + least[i][a] - least[i][s] + arc])


def _least(values: list[int | None] | list[int] | Costs) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _furthest(scaled: Scaled, weights: Weights, j: int) -> list[int]:
    """[layer]: the largest end of a stage that opens there: what its layers take at least must be below the high ends and fit."""
    tables = (scaled.prefill, scaled.decode, scaled.bytes)
    least = [[_least(table[kind][j]) for table in tables] for kind in scaled.kind]
    result = []
    for a in range(scaled.layers):
        sums, e = [0, 0, 0], a
        while e < scaled.layers:
            step = [total + cell for total, cell in zip(sums, least[e]) if cell is not None]
            if len(step) < 3 or step[2] > scaled.capacity[j] or not all(map(below, step, weights.high)):
                break
            sums, e = step, e + 1
        result.append(e)
    return result
