"""Certificates from the exact solver's multipliers and boxes; every leaf is one that the checker's own bounds close."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import inf, isfinite, nextafter
from typing import TYPE_CHECKING

from llmpq.errors import CertificateError
from llmpq.solver.certificate.check import StartChecker
from llmpq.solver.certificate.incumbent import objective
from llmpq.solver.certificate.layers import LayerBound
from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.tree import Tree
from llmpq.solver.certificate.value import Certificate, Leaf, Multipliers, Start, problem_digest
from llmpq.solver.certificate.weights import ONE, Weights
from llmpq.solver.problem import Assignment, Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmpq.solver.exact.figures import Figures
    from llmpq.solver.exact.grid import Grid
    from llmpq.solver.exact.kernels import Kernels

    Floats = NDArray[np.float64]

MOST_LAYERS, MOST_DEVICES = 48, 4  # of a certificate by boxes; beyond, the weak dual alone
STEPS = (400, 200)  # of ascent: at the start, and with caps
MARGIN = 1e-9  # relative, of the bound: rounding of the solver's floats
SHRINK = 1e-11  # relative, of multipliers, so that sums of them stay below what they may be


def certify(problem: Problem, assignment: Assignment, gap: float | None) -> Certificate:
    """That no assignment is better than the given one by more than `gap`.

    Beyond 48 layers or 4 devices, or with gap None, by the weak dual alone, whose own gap the certificate states. Raises
    CertificateError when the boxes do not close `gap`: the assignment is not within it, or stages and boxes are too many.
    """
    small = problem.num_layers <= MOST_LAYERS and len(problem.devices) <= MOST_DEVICES
    builder = Builder.of(problem, assignment)
    return builder.weak_dual() if gap is None or not small else builder.by_boxes(gap)


@dataclass(slots=True)
class Builder:
    """One certificate in the making; exact: the objective of the assignment."""

    problem: Problem
    assignment: Assignment
    scaled: Scaled
    exact: Fraction
    figures: "Figures"
    kernels: "Kernels"

    @staticmethod
    def of(problem: Problem, assignment: Assignment) -> "Builder":
        from llmpq.solver.exact.answer import best_kernels
        from llmpq.solver.exact.figures import Figures
        from llmpq.solver.exact.masks import split_rows

        scaled = Scaled.of(problem)
        exact = objective(scaled, assignment.device, assignment.option)
        return Builder(problem, assignment, scaled, exact, Figures(problem, split_rows(problem, ())[0]), best_kernels())

    def by_boxes(self, gap: float) -> Certificate:
        """At the gap asked for."""
        claimed = float(self.exact)
        bound = nextafter(claimed - gap * abs(claimed), inf)
        bound = min(nextafter(bound, inf), claimed)
        starts = [self._start(first, grid, at, bound) for first, grid, at in self._roots(bound * (1.0 + MARGIN))]
        return self._certificate(bound, gap, starts)

    def weak_dual(self) -> Certificate:
        """At the least of the bounds by layers, rounded down."""
        leaves, values = list[tuple[int, Leaf]](), [self.exact]
        for first, _, at in self._roots(inf):
            leaf = Leaf((0.0, 0.0), (None, None), "layers", self._multipliers(at))
            value = LayerBound.of(self.scaled, Weights.of(self.scaled, leaf, "start"), first).value
            values += [] if value is None else [Fraction(value, ONE * self.scaled.unit)]
            leaves.append((first, leaf))
        bound = nextafter(float(min(values)), -inf)
        gap = float((Fraction(float(self.exact)) - Fraction(bound)) / abs(Fraction(float(self.exact)))) if self.exact else inf
        return self._certificate(bound, nextafter(gap, inf), [Start(first, None, (leaf,)) for first, leaf in leaves])

    def _certificate(self, bound: float, gap: float, starts: list[Start]) -> Certificate:
        chosen = self.assignment.device, self.assignment.option
        return Certificate(problem_digest(self.problem), float(self.exact), bound, gap, *chosen, tuple(starts))

    def _roots(self, target: float) -> "Iterator[tuple[int, Grid, Floats]]":
        """For every first used device its grid and multipliers."""
        from llmpq.solver.exact.grid import Caps, Grid

        for first in self.scaled.first_devices():
            grid = Grid.of(self.figures, first, Caps())
            at = grid.start_multipliers(self.kernels)
            yield first, grid, self.kernels.ascend_grid(grid, at, grid.scale(), STEPS[0], target)[1]

    def _start(self, first: int, grid: "Grid", at: "Floats", bound: float) -> Start:
        whole = Leaf((0.0, 0.0), (None, None), "layers", self._multipliers(at))
        if self._closes(first, whole, bound):
            return Start(first, None, (whole,))
        capped, outside = self._capped(first, grid, at, bound)
        at = self.kernels.ascend_grid(capped, at, capped.scale(), STEPS[1], bound * (1.0 + MARGIN))[1]
        high = (_finite(capped.caps.prefill), _finite(capped.caps.decode))
        listing = Leaf((0.0, 0.0), high, "layers", self._multipliers(at))
        if self._closes(first, listing, bound):
            return Start(first, None, (listing, *outside))
        return Start(first, listing, (*self._tree(capped, at, listing, bound), *outside))

    def _tree(self, grid: "Grid", at: "Floats", listing: Leaf, bound: float) -> list[Leaf]:
        import numpy as np

        from llmpq.solver.exact.graph import Box, Graph
        from llmpq.solver.exact.search import MOST, hashes

        listed = self.kernels.list_stages(grid, at, bound * (1.0 + MARGIN), hashes(self.figures), MOST)
        if listed is None:
            raise CertificateError("certificate: too many stages lie below the bound; ask for a wider --gap")
        devices = self.figures.shape[0]
        tree = Tree(self.kernels, self._checker(grid.first, listing, bound), bound, float(self.exact) - bound, self._multipliers)
        tree.run(
            Graph.of(grid, listed[0]),
            Box((0.0, 0.0), (grid.caps.prefill, grid.caps.decode)),
            np.append(at[: 2 * devices], at[-1]),
        )
        return tree.leaves

    def _capped(self, first: int, grid: "Grid", at: "Floats", bound: float) -> "tuple[Grid, list[Leaf]]":
        """The grid with caps on its slowest stages, and the leaves of what lies beyond them."""
        from llmpq.solver.exact.grid import Caps, Grid

        caps, outside = [inf, inf], list[Leaf]()
        for axis in (0, 1):
            for cap, trial, share in sorted(self._caps(grid, at, axis, bound), key=lambda found: found[0]):
                low = (cap, 0.0) if axis == 0 else (0.0, cap)
                leaf = Leaf(low, (None, None), "layers", self._multipliers(trial, share))
                if self._closes(first, leaf, bound):
                    caps[axis] = cap
                    outside.append(leaf)
                    break
        return Grid.of(self.figures, first, Caps(*caps)), outside

    def _caps(self, grid: "Grid", at: "Floats", axis: int, bound: float) -> "Iterator[tuple[float, Floats, float]]":
        """Slowest seconds from which on multipliers prove the bound; without the price of that stage, or with part of it."""
        from llmpq.solver.exact.grid import CAP_SCALES, LEAST_LEFT, work_share

        figures, devices = self.figures, self.figures.shape[0]
        share = work_share(figures, float(at[devices : 2 * devices].sum()))
        slowest = figures.decode_slowest if axis else figures.prefill_slowest
        trials = [(scale, share) for scale in CAP_SCALES] + ([(0.0, 0.0)] if axis and figures.round_trip else [])
        for scale, charged in trials:
            trial, part = at.copy(), slice(axis * devices, (axis + 1) * devices)
            trial[part] *= scale
            left = slowest * (1.0 - charged if axis and figures.round_trip else 1.0) - float(trial[part].sum())
            if left > LEAST_LEFT * slowest:
                cap = (bound * (1.0 + MARGIN) - self.kernels.grid_bound(grid, trial, charged)) / left
                yield max(0.0, cap) * (1.0 + MARGIN), trial, charged

    def _checker(self, first: int, listing: Leaf | None, bound: float) -> StartChecker:
        return StartChecker.of(self.scaled, Start(first, listing, ()), Fraction(bound), self.exact, "certificate")

    def _closes(self, first: int, leaf: Leaf, bound: float) -> bool:
        return self._checker(first, None, bound).proves(leaf)

    def _multipliers(self, at: "Floats", share: float | None = None) -> Multipliers:
        """As the checker takes them: not negative, adding up to a little less than they may."""
        from llmpq.solver.exact.grid import work_share

        devices = self.figures.shape[0]
        values = [max(0.0, float(value)) for value in at]
        slow = [value * (1.0 - SHRINK) for value in values[: 2 * devices]]
        memory = values[2 * devices : -1] or [0.0] * devices
        trip = (work_share(self.figures, sum(slow[devices:])) if share is None else share) * (1.0 - SHRINK)
        return Multipliers(tuple(slow[:devices]), tuple(slow[devices:]), tuple(memory), values[-1], trip)


def _finite(cap: float) -> float | None:
    return cap if isfinite(cap) else None
