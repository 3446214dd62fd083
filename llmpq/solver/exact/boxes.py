"""Boxes: branch and bound over ranges of the slowest stages, on the graph of stages."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.exact.graph import Box, Graph, Rows, box_rows
from llmpq.solver.exact.kernels import FAR, Kernels
from llmpq.solver.exact.stages import Stages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_PATHS = 10_000  # made in a box before the rest is bounded by the least of them
MORE_PATHS = 1.25  # times as many in the halves of a box that needed more
MOST_PATHS = 4_000_000
STEPS = (60, 25)  # of ascent at the first box and at the others


@dataclass(slots=True)
class Node:
    """A box that may still hold something below the cutoff."""

    box: Box
    bound: float
    multipliers: "Floats"
    graph: Graph
    most: int = MAX_PATHS


@dataclass(slots=True)
class BoxSearch:
    """Best-first search of one graph for assignments below `cutoff()`; `found` is told of every path met.

    slack: seconds given away where paths that differ by little count as one.
    """

    kernels: Kernels
    cutoff: Callable[[], float]
    found: Callable[[Stages, "list[int]"], None]
    expired: Callable[[], bool]
    slack: float
    visited: int = 0
    unresolved: float = np.inf
    paths: int = 0

    def run(self, graph: Graph, multipliers: "Floats", bound: float) -> float:
        """A lower bound, at least the final cutoff unless time ran out or boxes held too many paths to the end."""
        caps = graph.grid.caps
        heap = [(bound, 0, Node(Box((0.0, 0.0), (caps.prefill, caps.decode)), bound, multipliers, graph))]
        count = 0
        while heap and heap[0][0] < self.cutoff():
            if self.expired():
                return min(heap[0][0], self.unresolved)
            for child in self._visit(heappop(heap)[2]):
                count += 1
                heappush(heap, (child.bound, count, child))
        return min(self.cutoff(), self.unresolved)

    def _visit(self, node: Node) -> list[Node]:
        """The halves of a box, none when nothing in it is below the cutoff."""
        self.visited += 1
        low, high = node.box.low, node.box.high
        figures = node.graph.stages.figures
        graph = node.graph.only((figures[:, 2] <= high[0]) & (figures[:, 3] <= high[1]))
        if not len(graph.stages):
            return []
        low = _raised(low, graph)
        arguments = (low, node.multipliers, graph.scale(), STEPS[self.visited > 1], self.cutoff())
        value, multipliers = self.kernels.ascend_items(graph.grid, graph.stages, *arguments)
        bound = max(node.bound, value)
        if bound >= self.cutoff():
            return []
        rows = box_rows(graph, low, multipliers)
        through = graph.from_source(rows.mix)[graph.stages.start] + rows.mix + graph.to_end(rows.mix)[graph.stages.stop]
        near = through + rows.constant < self.cutoff() + self.slack
        if not near.any():
            return []
        if np.count_nonzero(near) < 0.9 * len(near):
            graph = graph.only(near)
            rows = box_rows(graph, low, multipliers)
        value, dropped, path = self.best_path(graph, rows, node.most)
        bound = max(bound, min(value, dropped) - self.slack)
        if path:
            self.found(graph.stages, path)
        if bound >= self.cutoff():
            return []
        halves = halves_of(Box(low, high), graph, multipliers, path)
        if not halves and (low != _raised(low, graph) or (dropped < value and node.most < MOST_PATHS)):
            halves = [Box(_raised(low, graph), high)]
        if not halves:
            self.unresolved = min(self.unresolved, bound)
        most = min(MOST_PATHS, int(MORE_PATHS * node.most)) if dropped < value else node.most
        return [Node(half, bound, multipliers, graph, most) for half in halves]

    def best_path(self, graph: Graph, rows: Rows, most: int) -> tuple[float, float, list[int]]:
        """The least relaxed cost in the box, or the cutoff; a bound of what was not looked at; the items of the path."""
        figures, stages = graph.grid.figures, graph.stages
        sensitivity = stages.figures[:, 4]
        tail = -rows.price * figures.budget if rows.price > 0 else 0.0
        mixed = rows.mix + graph.to_end(rows.mix, tail)[stages.stop]
        order = np.lexsort((mixed, stages.start))
        table = np.ascontiguousarray(np.array([rows.work, rows.slow, sensitivity, mixed])[:, order])
        rest = np.array([graph.to_end(row) for row in (rows.work, rows.slow, sensitivity)])
        first = np.searchsorted(stages.start, np.arange(graph.end + 1)).astype(np.int64)
        limits = (self.cutoff() + self.slack, rows.share, rows.price, min(figures.budget, FAR))
        numbers = np.array([*limits, self.slack / figures.shape[0], *rows.at_start])
        stop = np.ascontiguousarray(stages.stop[order])
        value, dropped, paths, items = self.kernels.best_path(
            first, graph.source, stop, table, rest, numbers, not figures.round_trip, most
        )
        self.paths += paths
        return value, dropped, [int(order[item]) for item in items]


def _raised(low: tuple[float, float], graph: Graph) -> tuple[float, float]:
    """The low ends, not below the least of any stage: the slowest is one of them."""
    least = graph.stages.figures[:, 2:4].min(axis=0)
    return max(low[0], float(least[0])), max(low[1], float(least[1]))


def halves_of(box: Box, graph: Graph, multipliers: "Floats", path: list[int]) -> list[Box]:
    """Split where the relaxation charges the path least of what it costs, between times that stages take.

    Empty when nothing is left to split.
    """
    figures, devices = graph.grid.figures, graph.grid.figures.shape[0]
    best = (-1.0, 0, 0.0, 0.0)
    for axis, weight in enumerate((figures.prefill_slowest, figures.decode_slowest)):
        times, low = np.maximum(graph.stages.figures[:, 2 + axis], box.low[axis]), box.low[axis]
        slowest, charged = float(times.max()), low
        if path:
            shares = multipliers[axis * devices : (axis + 1) * devices]
            total, over = float(shares.sum()), times[path] - low
            slowest = float(times[path].max())
            charged = low + float((shares[graph.device[path]] * over).sum()) / total if total > 0 else low
        above = times[times > 0.5 * (slowest + charged)]
        upper = float(above.min()) if len(above) else float(times.max())
        below = times[times < upper]
        if len(below):
            best = max(best, (weight * (slowest - charged), -axis, float(below.max()), upper))
    gain, axis, lower, upper = best
    return box.split(-axis, lower, upper) if gain >= 0.0 else []
