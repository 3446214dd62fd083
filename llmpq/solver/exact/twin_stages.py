"""Twin of the stage kernel: stages by label setting, in plain Python."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llmpq.solver.exact.kernels import FAR, KEEP
from llmpq.solver.exact.twin_grid import Plain, Terms, grid_value, sweep_on

WIDTH = 1 << 15  # labels of one device, start and layer
WORD = 2**64 - 1


class FullError(Exception):
    """More stages or labels than can be held."""


@dataclass(slots=True)
class Label:
    """A run of layers on a device: seconds, bytes, sensitivity, relaxed cost, counts of options, parent and option."""

    prefill: float
    decode: float
    bytes: float
    sensitivity: float
    value: float
    key: int
    parent: int
    option: int
    chain: int = -1


@dataclass(slots=True)
class Lister:
    """Lists what kernels.c lists, in the same order."""

    plain: Plain
    terms: Terms
    memory: list[float]
    cutoff: float
    hashes: list[list[int]]
    most: tuple[int, int]
    start: list[int] = field(default_factory=list)
    stop: list[int] = field(default_factory=list)
    figures: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    chain: list[int] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    option: list[int] = field(default_factory=list)

    @staticmethod
    def of(plain: Plain, at: list[float], cutoff: float, hashes: list[list[int]], most: tuple[int, int]) -> "Lister":
        _, terms = grid_value(plain, at, plain.share(at))
        memory = at[2 * plain.devices : 3 * plain.devices]
        sweep_on(plain, terms, memory)
        return Lister(plain, terms, memory, cutoff - terms.constant, hashes, most)

    def run(self) -> None:
        """Raises FullError when there are too many."""
        plain, terms = self.plain, self.terms
        for j in range(plain.devices):
            for a in range(plain.layers):
                before = terms.forward[j][a]
                if before >= FAR or before + terms.backward[j][a] >= self.cutoff:
                    continue
                prefill, decode, held = [0.0, 0.0, 0.0] if a else [row[j] for row in plain.ends[:3]]
                labels = [Label(prefill, decode, held, 0.0, before - self.memory[j] * plain.capacity[j], 0, -1, 0)]
                for i in range(a, plain.reach[j][a]):
                    labels = self._thinned(self._extended(labels, j, i))
                    if not labels:
                        break
                    self._close(labels, j, a, i + 1)

    def _extended(self, labels: list[Label], j: int, i: int) -> list[Label]:
        """With layer i, at every option; labels that differ in sensitivity alone are merged."""
        found: list[Label] = []
        known: dict[tuple[int, float], list[Label]] = {}
        for label in labels:
            for new in self._with_layer(label, j, i):
                same = next((old for old in known.get((new.key, new.bytes), []) if _alike(old, new)), None)
                if same is None:
                    if len(found) == WIDTH:
                        raise FullError
                    found.append(new)
                    known.setdefault((new.key, new.bytes), []).append(new)
                elif same.sensitivity > new.sensitivity:
                    same.sensitivity, same.value = new.sensitivity, new.value
                    same.parent, same.option = new.parent, new.option
        return found

    def _with_layer(self, label: Label, j: int, i: int) -> Iterator[Label]:
        plain, terms, kind = self.plain, self.terms, self.plain.kind[i]
        for b, there in enumerate(plain.allowed[i][j]):
            value = label.value + (terms.weight[kind][j][b] + terms.extra[i][b])
            if not there or value + terms.open[j][i + 1] >= self.cutoff:
                continue
            prefill, decode = label.prefill + plain.prefill[kind][j][b], label.decode + plain.decode[kind][j][b]
            held = label.bytes + plain.bytes[kind][j][b]
            if prefill > plain.caps[0] or decode > plain.caps[1] or held > plain.capacity[j]:
                continue
            key = (label.key + self.hashes[kind][b]) & WORD
            yield Label(prefill, decode, held, label.sensitivity + plain.sensitivity[i][b], value, key, label.chain, b)

    def _thinned(self, labels: list[Label]) -> list[Label]:
        """Without those that another one is no worse than in every way."""
        kept: list[Label] = []
        for label in sorted(labels, key=lambda label: label.value):
            if any(_no_worse(old, label) and old.bytes <= label.bytes for old in kept[:KEEP]):
                continue
            if len(self.parent) >= self.most[1]:
                raise FullError
            label.chain = len(self.parent)
            self.parent.append(label.parent)
            self.option.append(label.option)
            kept.append(label)
        return kept

    def _close(self, labels: list[Label], j: int, a: int, e: int) -> None:
        """Items of the stage of device j that ends at e."""
        plain, terms, shown = self.plain, self.terms, list[Label]()
        if terms.closing[j][e] >= FAR:
            return
        last = [row[j] for row in plain.ends[3:]] if e == plain.layers else None
        for label in labels:
            prefill, decode, held = label.prefill, label.decode, label.bytes
            if last:
                prefill, decode, held = prefill + last[0], decode + last[1], held + last[2]
            value = label.value + self.memory[j] * (plain.capacity[j] - held)
            if held > plain.capacity[j] or value + terms.closing[j][e] >= self.cutoff:
                continue
            closed = Label(prefill, decode, held, label.sensitivity, value, 0, -1, 0, label.chain)
            if any(_no_worse(old, label) for old in shown):
                continue
            shown.append(label)
            self._emit(closed, j, a, e)

    def _emit(self, stage: Label, j: int, a: int, e: int) -> None:
        plain, terms, width = self.plain, self.terms, self.plain.layers + 1
        ended = e == plain.layers
        for k in (plain.devices,) if ended else range(j + 1, plain.devices):
            rest = terms.end[j] if ended else terms.arc[j][k] + terms.backward[k][e]
            lp, ld = (0.0 if ended else plain.link_prefill[j][k]), plain.link_decode[j][plain.first if ended else k]
            slowest: Callable[[float, float], float] = max if plain.overlap else float.__add__
            xp, xd = slowest(stage.prefill, lp), slowest(stage.decode, ld)
            if rest >= FAR or stage.value + rest >= self.cutoff or xp > plain.caps[0] or xd > plain.caps[1]:
                continue
            if len(self.start) >= self.most[0]:
                raise FullError
            self.start.append(j * width + a)
            self.stop.append(plain.devices * width if ended else k * width + e)
            self.figures.append((stage.prefill + lp, stage.decode + ld, xp, xd, stage.sensitivity))
            self.chain.append(stage.chain)


def _alike(old: Label, new: Label) -> bool:
    """Same seconds up to the order of the sum."""
    pairs = ((old.prefill, new.prefill), (old.decode, new.decode))
    return all(abs(x - y) <= 1e-12 * (abs(x) + abs(y)) for x, y in pairs)


def _no_worse(old: Label, new: Label) -> bool:
    return old.prefill <= new.prefill and old.decode <= new.decode and old.sensitivity <= new.sensitivity
