"""StageList: every stage that an assignment below a cutoff may contain, found by label setting over integers."""

from dataclasses import dataclass
from typing import NamedTuple

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
        high, capacity = self.weights.high, scaled.capacity[j]
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
        for label in labels:
            for option in options:
                new = Label(*(x + y for x, y in zip(label, option)))
                if new.cost >= room or new.bytes > capacity or not (below(new.prefill, high[0]) and below(new.decode, high[1])):
                    continue
                key = (new.prefill, new.decode, new.bytes)
                old = found.get(key)
                if old is None or new.sensitivity < old.sensitivity:
                    found[key] = new
        return list(found.values())

    def _closed(self, labels: list[Label], j: int, a: int, e: int, found: list[Stage]) -> None:
        """Stages that end at e, where the memory that is not held is no longer paid for."""
        closing, scaled = self.bound.closing[j][e], self.scaled
        if closing is None:
            return
        ended = e == scaled.layers
        last = [row[j] if ended else 0 for row in scaled.last]
        shown: list[Label] = []
        for label in labels:
            held = label.bytes + last[2]
            cost = label.cost + self.weights.memory[j] * (scaled.capacity[j] - label.bytes)
            cost -= self.weights.memory[j] * last[2] if ended else 0
            if held > scaled.capacity[j] or cost + closing >= self.cutoff or any(_no_worse(old, label) for old in shown):
                continue
            shown.append(label)
            self._emit(label._replace(cost=cost, prefill=label.prefill + last[0], decode=label.decode + last[1]), j, a, e, found)

    def _emit(self, stage: Label, j: int, a: int, e: int, found: list[Stage]) -> None:
        scaled, costs, width = self.scaled, self.bound.costs, self.scaled.layers + 1
        ended, high = e == scaled.layers, self.weights.high
        for k in (scaled.devices,) if ended else range(j + 1, scaled.devices):
            arc = costs.ending(j) if ended else costs.arc(j, k)
            rest = 0 if ended else self.bound.after[k][e]
            if arc is None or rest is None or stage.cost + arc + rest >= self.cutoff:
                continue
            prefill = 0 if ended else scaled.link_prefill[j][k]
            decode = scaled.link_decode[j][costs.first if ended else k]
            join = max if scaled.overlap else int.__add__
            slow = join(stage.prefill, prefill), join(stage.decode, decode)
            if below(slow[0], high[0]) and below(slow[1], high[1]):
                ends = j * width + a, scaled.devices * width if ended else k * width + e
                seconds = stage.prefill + prefill, stage.decode + decode
                found.append(Stage(*ends, j, *seconds, *slow, stage.sensitivity, stage.loss))


def _undominated(labels: list[Label]) -> list[Label]:
    """Without those that one of the cheapest is no worse than in seconds, sensitivity and bytes."""
    kept: list[Label] = []
    for label in sorted(labels):
        if not any(old.bytes <= label.bytes and _no_worse(old, label) for old in kept[:COMPARED]):
            kept.append(label)
    return kept


def _no_worse(old: Label, label: Label) -> bool:
    return old.prefill <= label.prefill and old.decode <= label.decode and old.sensitivity <= label.sensitivity
