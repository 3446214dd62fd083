"""Step times: what a step takes by the points of a profile, of an engine that passes phases apart and of one that mixes them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from statistics import median

from llmpq.costs.interpolation import Grid, Lengths, along, interpolate, left_out
from llmpq.costs.point import Point, Timing
from llmpq.costs.step import Step

LEAST_S = 1e-9  # of what is left of a time when another is taken from it
Lines = dict[int, dict[int, float]]


@dataclass(frozen=True)
class SeparatePasses:
    """Of points whose passes are of one phase: a mixed step is a pass of decode and one of prefill, one after the other."""

    points: tuple[Point, ...]

    def layer_s(self, kind: int, precision: str, step: Step) -> float | None:
        """Seconds of one layer of the kind of that index; None where a phase of the step was not measured."""
        return _both(step, *(self._layers.get((kind, precision, decode)) for decode in (True, False)))

    def ends_s(self, step: Step) -> tuple[float, float] | None:
        """Seconds before the layers and behind them."""
        first, last = (_both(step, *(grids.get(decode) for decode in (True, False))) for grids in (self._first, self._last))
        return None if first is None or last is None else (first, last)

    def rank_s(self, step: Step) -> float:
        """Seconds that every stage spends on a step beside its layers and ends; 0 where ends have them."""
        return _both(step, *(self._rank.get(decode) for decode in (True, False))) or 0.0

    def message_s(self, step: Step) -> float:
        """Seconds that each of several stages spends on messages: in no pass."""
        return 0.0

    @cached_property
    def misses(self) -> list[float]:
        """|log| of how far points lie from what their neighbours say without them."""
        return left_out(self._layers.values())

    @cached_property
    def _layers(self) -> dict[tuple[int, str, bool], Grid]:
        found: dict[tuple[int, str, bool], Lines] = {}
        for point in self.points:
            for index, timing in enumerate(point.layers):
                if timing is not None:
                    grid = found.setdefault((index, point.precision, point.is_decode), {})
                    grid.setdefault(point.rows, {})[point.context] = timing.median_s
        return dict(found)

    @cached_property
    def _first(self) -> dict[bool, Grid]:
        """Ends stay at 16 bits whatever the layers: the median over what was measured beside them."""
        return self._by_phase(lambda point: point.first)

    @cached_property
    def _last(self) -> dict[bool, Grid]:
        return self._by_phase(lambda point: point.last)

    @cached_property
    def _rank(self) -> dict[bool, Grid]:
        return self._by_phase(lambda point: point.rank)

    def _by_phase(self, end: Callable[[Point], Timing | None]) -> dict[bool, Grid]:
        cells: dict[bool, list[tuple[int, int, float]]] = {}
        for point in self.points:
            if (found := end(point)) is not None:
                cells.setdefault(point.is_decode, []).append((point.rows, point.context, found.median_s))
        return {phase: grid_of(of_phase) for phase, of_phase in cells.items()}


@dataclass(frozen=True)
class SharedSteps:
    """Of points that tell attention from the rest of a layer: all tokens of a step pass through its linears together, and
    attention of the prompts and of the sequences that decode add up. Mixed points are not used, they tell how true that is."""

    points: tuple[Point, ...]

    def layer_s(self, kind: int, precision: str, step: Step) -> float | None:
        """As of `SeparatePasses`."""
        line, attention = self._linears.get((kind, precision)), self._attention_s(kind, step)
        return None if line is None or attention is None else along(line, step.tokens) + attention

    def ends_s(self, step: Step) -> tuple[float, float] | None:
        """As of `SeparatePasses`; scheduling, which does not slow down with the stage, is in `engine_s`."""
        if not self._last or (step.prompts and not self._norm):
            return None
        norm = along(self._norm, step.prompts * step.new_tokens) if step.prompts else 0.0
        return along(self._first, step.tokens), along(self._last, step.sampled) + norm

    def rank_s(self, step: Step) -> float:
        """Seconds that every stage spends on a step before its layers."""
        return along(self._rank, step.sampled) if self._rank else 0.0

    def message_s(self, step: Step) -> float:
        """Seconds that each of several stages spends on what it is told of a step and tells."""
        return along(self._message, step.sampled) if self._message else 0.0

    def engine_s(self, step: Step) -> float:
        """Seconds of scheduling a step and of handling its outputs."""
        return along(self._engine, step.sampled) if self._engine else 0.0

    @cached_property
    def misses(self) -> list[float]:
        """|log| of how far points lie from their neighbours, and mixed steps from the sum of their parts."""
        mixed = [
            abs(log(timing.median_s / predicted))
            for point in self.points
            if point.is_mixed
            for index, timing in enumerate(point.layers)
            if timing is not None and (predicted := self.layer_s(index, point.precision, point.step))
        ]
        return left_out({0: line} for line in self._linears.values()) + mixed

    def _attention_s(self, kind: int, step: Step) -> float | None:
        decode, prefill = (self._attention.get((kind, phase)) for phase in (True, False))
        seconds = _both(replace(step, new_tokens=step.prompt_len), decode, prefill)
        before = step.prompt_len - step.new_tokens  # what earlier steps or requests left in the cache is seen, not computed
        if seconds is None or prefill is None or not step.prompts or before < 1:
            return seconds
        return max(seconds - prompts_s(prefill, step.prompts, before), 0.0)

    @cached_property
    def _pure(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if not point.is_mixed)

    @cached_property
    def _linears(self) -> dict[tuple[int, str], Lengths]:
        """(kind, precision) -> tokens of the step -> seconds of a layer without its attention."""
        found: dict[tuple[int, str], list[tuple[int, float]]] = {}
        for point in self._pure:
            for index, (whole, inside) in enumerate(zip(point.layers, point.attention)):
                if whole is not None and inside is not None:
                    line = found.setdefault((index, point.precision), [])
                    line.append((point.rows * point.tokens, max(whole.median_s - inside.median_s, LEAST_S)))
        return {key: line_of(pairs) for key, pairs in found.items()}

    @cached_property
    def _attention(self) -> dict[tuple[int, bool], Grid]:
        """Attention is at 16 bits beside layers of any precision: the median over them."""
        found: dict[tuple[int, bool], list[tuple[int, int, float]]] = {}
        for point in self._pure:
            for index, inside in enumerate(point.attention):
                if inside is not None:
                    cell = (point.rows, point.context, inside.median_s)
                    found.setdefault((index, point.is_decode), []).append(cell)
        return {key: grid_of(cells) for key, cells in found.items()}

    @cached_property
    def _first(self) -> Lengths:
        return line_of((point.rows * point.tokens, point.first.median_s) for point in self._pure)

    @cached_property
    def _last(self) -> Lengths:
        return line_of((point.rows, point.last.median_s) for point in self._pure if point.is_decode)

    @cached_property
    def _norm(self) -> Lengths:
        """Tokens of prompts -> seconds that the last end takes for them beside those that are sampled."""
        found = ((p.rows * p.tokens, p.last.median_s - along(self._last, p.rows)) for p in self._pure if not p.is_decode)
        return line_of((tokens, max(seconds, LEAST_S)) for tokens, seconds in found) if self._last else {}

    @cached_property
    def _rank(self) -> Lengths:
        return line_of((point.rows, point.rank.median_s) for point in self._pure if point.rank is not None)

    @cached_property
    def _message(self) -> Lengths:
        return line_of((point.rows, point.message.median_s) for point in self._pure if point.message is not None)

    @cached_property
    def _engine(self) -> Lengths:
        return line_of((point.rows, point.engine.median_s) for point in self._pure if point.engine is not None)


def _both(step: Step, decode: Grid | None, prefill: Grid | None) -> float | None:
    """A pass of decode and one of prefill; None where the step has a phase without a grid."""
    if (step.sequences and decode is None) or (step.prompts and prefill is None):
        return None
    seconds = interpolate(decode, step.sequences, step.context) if step.sequences and decode else 0.0
    return seconds + (prompts_s(prefill, step.prompts, step.new_tokens) if step.prompts and prefill else 0.0)


def prompts_s(grid: Grid, prompts: float, length: float) -> float:
    """Seconds of so many prompts of that length; less than one is that part of one. Measured at one length alone, they go by the
    tokens of all of them."""
    part, several = min(prompts, 1.0), max(prompts, 1.0)
    if len({known for line in grid.values() for known in line}) > 1:
        return part * interpolate(grid, several, length)
    by_tokens = {count * known: seconds for count, line in grid.items() for known, seconds in line.items()}
    return part * along(by_tokens, several * length)


def line_of(pairs: Iterable[tuple[int, float]]) -> Lengths:
    """The median of what was measured at the same size."""
    found: dict[int, list[float]] = {}
    for size, seconds in pairs:
        found.setdefault(size, []).append(seconds)
    return {size: median(several) for size, several in found.items()}


def grid_of(cells: Iterable[tuple[int, int, float]]) -> Grid:
    """(sequences, length, seconds) by sequences and length, the median of what is of the same."""
    found: dict[tuple[int, int], list[float]] = {}
    for rows, length, seconds in cells:
        found.setdefault((rows, length), []).append(seconds)
    grid: Lines = {}
    for (rows, length), several in found.items():
        grid.setdefault(rows, {})[length] = median(several)
    return dict(grid)
