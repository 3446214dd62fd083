"""StageLister: every stage that an assignment below a cutoff may contain, found by label setting over integers."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from llmpq.solver.certificate.front import undominated
from llmpq.solver.certificate.layers import LayerBound
from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.weights import Weights, below

COMPARED = 16  # labels that a new one is compared with: more finds more that are no better, fewer is faster


class Label(NamedTuple):
    """A run of layers on one device: relaxed cost up to here, seconds, sensitivity, loss, bytes."""

    cost: int
    prefill: int
    decode: int
    sensitivity: int
    loss: int
    bytes: int


class Stage(NamedTuple):
    """An arc between states, device * (layers + 1) + layer, the end being devices * (layers + 1).

    prefill, decode: seconds with the link that follows; slow_*: of what may be the slowest: stage and link, or their larger.
    """

    start: int
    stop: int
    device: int
    prefill: int
    decode: int
    slow_prefill: int
    slow_decode: int
    sensitivity: int
    loss: int


@dataclass(frozen=True, slots=True)
class StageLister:
    """Lists the stages of the assignments below `cutoff` (in units of Weights) whose slowest stages lie below the high ends."""

    bound: LayerBound
    cutoff: int

    @property
    def scaled(self) -> Scaled:
        return self.bound.costs.scaled

    @property
    def weights(self) -> Weights:
        return self.bound.costs.weights

    def run(self) -> list[Stage]:
        """By start, in the order of devices and layers."""
        found: list[Stage] = []
        for j in range(self.scaled.devices):
            for a in range(self.scaled.layers):
                self._from(j, a, found)
        return found

    def _from(self, j: int, a: int, found: list[Stage]) -> None:
        before, after = self.bound.before[j][a], self.bound.after[j][a]
        if before is None or after is None or before + after + self.bound.costs.constant >= self.cutoff:
            return
        held = self.scaled.first[2][j] if a == 0 else 0
        prefill, decode = (self.scaled.first[x][j] if a == 0 else 0 for x in (0, 1))
        cost = before + self.bound.costs.use(j) + self.bound.costs.constant
        labels = [Label(cost, prefill, decode, 0, 0, held)]
        for i in range(a, self.scaled.layers):
            labels = _undominated(self._extended(labels, j, i))
            if not labels:
                return
            self._closed(labels, j, a, i + 1, found)

    def _extended(self, labels: list[Label], j: int, i: int) -> list[Label]:
        """With layer i at every option; of those that differ in sensitivity alone, the least."""
        rest = self.bound.within[j][i + 1]
        if rest is None:
            return []
        scaled, kind, room = self.scaled, self.scaled.kind[i], self.cutoff - rest
        most_prefill, most_decode = (inf if high is None else high for high in self.weights.high)
        capacity = scaled.capacity[j]
        options = [
            (c, p, d, s, loss, m)
            for c, p, d, m, s, loss in zip(
                self.bound.cells[j][i],
                scaled.prefill[kind][j],
                scaled.decode[kind][j],
                scaled.bytes[kind][j],
                scaled.sensitivity[i],
                scaled.loss[i],
            )
            if c is not None and p is not None and d is not None and m is not None
        ]
        found: dict[tuple[int, int, int], Label] = {}
        for cost, prefill, decode, sensitivity, loss, held in labels:
            for c, p, d, s, x, m in options:
                if cost + c >= room or held + m > capacity or prefill + p >= most_prefill or decode + d >= most_decode:
                    continue
                key = (prefill + p, decode + d, held + m)
                old = found.get(key)
                if old is None or sensitivity + s < old.sensitivity:
                    found[key] = Label(cost + c, key[0], key[1], sensitivity + s, loss + x, key[2])
        return list(found.values())

    def _closed(self, labels: list[Label], j: int, a: int, e: int, found: list[Stage]) -> None:
        """Stages that end at e, where the memory that is not held is no longer paid for."""
        closing, scaled = self.bound.closing[j][e], self.scaled
        if closing is None:
            return
        ended = e == scaled.layers
        last = [row[j] if ended else 0 for row in scaled.last]
        memory, capacity = self.weights.memory[j], scaled.capacity[j]
        fitting = []
        for label in labels:
            cost = label.cost + memory * (capacity - label.bytes - last[2])
            if label.bytes + last[2] <= capacity and cost + closing < self.cutoff:
                fitting.append((label.prefill + last[0], label.decode + last[1], label.sensitivity, label.loss, cost))
        for row in undominated(fitting):
            self._emit(row, j, a, e, found)

    def _emit(self, ended: tuple[int, int, int, int, int], j: int, a: int, e: int, found: list[Stage]) -> None:
        """Prefill, decode, sensitivity, loss, cost: with the link to every device that may follow, or to the first."""
        scaled, costs, width = self.scaled, self.bound.costs, self.scaled.layers + 1
        last, high = e == scaled.layers, self.weights.high
        for k in (scaled.devices,) if last else range(j + 1, scaled.devices):
            arc = costs.ending(j) if last else costs.arc(j, k)
            rest = 0 if last else self.bound.after[k][e]
            if arc is None or rest is None or ended[4] + arc + rest >= self.cutoff:
                continue
            prefill, decode = 0 if last else scaled.link_prefill[j][k], scaled.link_decode[j][costs.first if last else k]
            join = max if scaled.overlap else int.__add__
            slow = join(ended[0], prefill), join(ended[1], decode)
            if below(slow[0], high[0]) and below(slow[1], high[1]):
                stop = scaled.devices * width if last else k * width + e
                found.append(Stage(j * width + a, stop, j, ended[0] + prefill, ended[1] + decode, *slow, ended[2], ended[3]))


def _undominated(labels: list[Label]) -> list[Label]:
    """Without those that one of the cheapest is no worse than in seconds, sensitivity and bytes."""
    kept: list[Label] = []
    for label in sorted(labels):
        _, prefill, decode, sensitivity, _, held = label
        for _, p, d, s, _, m in kept[:COMPARED]:
            if p <= prefill and d <= decode and s <= sensitivity and m <= held:
                break
        else:
            kept.append(label)
    return kept
