"""Tree: a box split until the checker's bounds close every part."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from llmpq.errors import CertificateError
from llmpq.solver.certificate.check import StartChecker
from llmpq.solver.certificate.value import Leaf, Multipliers
from llmpq.solver.exact.boxes import MAX_PATHS, STEPS, BoxSearch, halves_of
from llmpq.solver.exact.graph import Box, Graph, box_rows
from llmpq.solver.exact.kernels import Kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_BOXES = 5000
SLACK_SHARE = 0.5  # of the distance from bound to objective, for paths that count as one
TARGET = 0.05  # of that distance, above the bound: where an ascent may stop
NEARLY = 0.99  # of that slack, left by the walk in floats, for the walk over integers to be worth its time


@dataclass(slots=True)
class Tree:
    """Leaves of one first used device; `room`: seconds from bound to objective."""

    kernels: Kernels
    checker: StartChecker
    bound: float
    room: float
    multipliers: "Callable[[Floats], Multipliers]"
    leaves: list[Leaf] = field(default_factory=list)

    def run(self, graph: Graph, box: Box, at: "Floats") -> None:
        """Raises CertificateError when a box is neither closed nor to be split, or when boxes are too many."""
        waiting = [(graph, box, at)]
        visited = 0
        while waiting:
            visited += 1
            if visited > MOST_BOXES:
                raise CertificateError(f"certificate: {MOST_BOXES} boxes do not close the gap; ask for a wider --gap")
            waiting += self._visit(*waiting.pop(), STEPS[visited > 1])

    def _visit(self, graph: Graph, box: Box, at: "Floats", steps: int) -> list[tuple[Graph, Box, "Floats"]]:
        figures = graph.stages.figures
        graph = graph.only((figures[:, 2] <= box.high[0]) & (figures[:, 3] <= box.high[1]))
        path: list[int] = []
        low = _first_times(box.low, graph)
        if not len(graph.stages):
            if self._done(box, "stages", at):
                return []
        else:
            arguments = (low, at, graph.scale(), steps, self.bound + TARGET * self.room)
            value, at = self.kernels.ascend_items(graph.grid, graph.stages, *arguments)
            if value >= self.bound and self._done(box, "stages", at):
                return []
            slack = SLACK_SHARE * self.room
            search = BoxSearch(self.kernels, lambda: self.bound, _ignored, _never, slack)
            value, dropped, path = search.best_path(graph, box_rows(graph, low, at), MAX_PATHS)
            if min(value, dropped) >= self.bound + NEARLY * slack and self._done(box, "paths", at):
                return []
        halves = halves_of(Box(low, box.high), graph, at, path) if len(graph.stages) else []
        if not halves:
            raise CertificateError(
                "certificate: a box that cannot be split holds something below the bound; solve with a smaller gap"
            )
        return [(graph, half, at) for half in _touching(box, halves)]

    def _done(self, box: Box, by: str, at: "Floats") -> bool:
        high = tuple(value if isfinite(value) else None for value in box.high)
        leaf = Leaf(box.low, (high[0], high[1]), "paths" if by == "paths" else "stages", self.multipliers(at))
        if not self.checker.proves(leaf):
            return False
        self.leaves.append(leaf)
        return True


def _first_times(low: tuple[float, float], graph: Graph) -> tuple[float, float]:
    """The low ends at the first stages that reach them: the slowest is a stage."""
    times = [column[column >= least] for column, least in zip(graph.stages.figures[:, 2:4].T, low)]
    prefill, decode = (float(above.min()) if len(above) else least for above, least in zip(times, low))
    return prefill, decode


def _touching(box: Box, halves: list[Box]) -> list[Box]:
    """The halves with what lies between them, where no stage ends, shared out; the low ends are those of the whole."""
    below, above = halves
    axis = 0 if below.high[0] != box.high[0] else 1
    middle = 0.5 * (below.high[axis] + above.low[axis])
    return box.split(axis, middle, middle)


def _ignored(*_: object) -> None:
    pass


def _never() -> bool:
    return False
