"""Graph: stages as arcs between states, and what a box of slowest stages lets the relaxation charge for each."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.exact.grid import Grid, work_share
from llmpq.solver.exact.kernels import FAR
from llmpq.solver.exact.stages import Stages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Box:
    """A range of the slowest prefill stage and of the slowest decode stage, seconds."""

    low: tuple[float, float]
    high: tuple[float, float]

    def split(self, axis: int, lower: float, upper: float) -> "list[Box]":
        """The part up to `lower` and the part from `upper` on."""
        low, high = list(self.low), list(self.high)
        high[axis], low[axis] = lower, max(upper, low[axis])
        return [Box(self.low, (high[0], high[1])), Box((low[0], low[1]), self.high)]


@dataclass(frozen=True, slots=True)
class Graph:
    """Stages of one grid; groups: for each device its items, the first of each state, and those states."""

    grid: Grid
    stages: Stages
    device: "NDArray[np.int32]"
    groups: tuple[tuple[slice, "NDArray[np.int64]", "NDArray[np.int32]"], ...]

    @staticmethod
    def of(grid: Grid, stages: Stages) -> "Graph":
        devices, layers, _ = grid.figures.shape
        device = stages.start // (layers + 1)
        bounds = [int(bound) for bound in np.searchsorted(device, np.arange(devices + 1))]
        groups = []
        for begin, end in pairwise(bounds):
            part = stages.start[begin:end]
            heads = np.flatnonzero(np.concatenate((part[:1] >= 0, part[1:] != part[:-1])))
            groups.append((slice(begin, end), heads, part[heads]))
        return Graph(grid, stages, device, tuple(groups))

    def only(self, chosen: "NDArray[np.bool_]") -> "Graph":
        return self if chosen.all() else Graph.of(self.grid, self.stages.only(chosen))

    @property
    def end(self) -> int:
        return self.grid.figures.shape[0] * (self.grid.figures.shape[1] + 1)

    @property
    def source(self) -> int:
        return self.grid.first * (self.grid.figures.shape[1] + 1)

    def to_end(self, cost: "Floats", tail: float = 0.0) -> "Floats":
        """Least cost from every state to the end."""
        rest = np.full(self.end + 1, FAR)
        rest[self.end] = tail
        for part, heads, states in reversed(self.groups):
            if len(heads):
                rest[states] = np.minimum.reduceat(cost[part] + rest[self.stages.stop[part]], heads)
        return rest

    def from_source(self, cost: "Floats") -> "Floats":
        """Least cost from the source to every state."""
        before = np.full(self.end + 1, FAR)
        before[self.source] = 0.0
        for part, _, _ in self.groups:
            np.minimum.at(before, self.stages.stop[part], before[self.stages.start[part]] + cost[part])
        return before

    def scale(self) -> "Floats":
        """Typical slopes of the bound: the seconds of a stage, sensitivity."""
        values, figures = self.stages.figures, self.grid.figures
        seconds = np.repeat(values[:, 2:4].mean(axis=0), figures.shape[0])
        spread = float(np.abs(values[:, 4]).mean()) * 0.1 * figures.shape[0]
        budget = max(abs(figures.budget), spread) if np.isfinite(figures.budget) else 1.0
        return np.maximum(np.concatenate((seconds, [budget])), 1e-12)


@dataclass(frozen=True, slots=True)
class Rows:
    """Relaxed cost of every item, by sums (work) and by the slowest stage (slow) of a round trip, and at the start of each.

    The cost of a path is the larger; mix = share * work + (1 - share) * slow + price * sensitivity bounds it.
    """

    work: "Floats"
    slow: "Floats"
    mix: "Floats"
    at_start: tuple[float, float]
    share: float
    price: float
    constant: float


def box_rows(graph: Graph, low: tuple[float, float], multipliers: "Floats") -> Rows:
    """What a box whose slowest stages take `low` seconds at least charges.

    A slowest stage is charged in parts, a part to every device by its multiplier, never for less than the low end.
    """
    figures, values, device = graph.grid.figures, graph.stages.figures, graph.device
    prefill, decode, price = np.split(multipliers, (figures.shape[0], 2 * figures.shape[0]))
    slow_total = float(decode.sum())
    share = work_share(figures, slow_total)
    if figures.round_trip:
        even = np.full(figures.shape[0], figures.decode_slowest / figures.shape[0])
        decode = decode * (figures.decode_slowest / slow_total) if slow_total > 0.0 else even
    both = values[:, 0] + figures.theta * values[:, 4] + prefill[device] * np.maximum(values[:, 2] - low[0], 0.0)
    charged = decode[device] * np.maximum(values[:, 3] - low[1], 0.0)
    at_work = figures.prefill_slowest * low[0]
    at_slow = at_work + figures.decode_slowest * low[1]
    work, slow = both + figures.round_trip * values[:, 1], both + charged
    if not figures.round_trip:
        work, slow, at_work = both + figures.decode_sum * values[:, 1] + charged, np.zeros_like(both), at_slow
    mix = share * work + (1.0 - share) * slow + price[0] * values[:, 4]
    constant = share * at_work + (1.0 - share) * at_slow - (price[0] * figures.budget if price[0] > 0 else 0.0)
    return Rows(work, slow, mix, (at_work, at_slow), share, float(price[0]), float(constant))
