"""Kernels: what the inner loops compute, in C or in Python."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmpq.solver.exact.grid import Grid
    from llmpq.solver.exact.stages import Chains, Stages

    Floats = NDArray[np.float64]

FAR = 1e300  # no path, no limit
METRIC_FLOOR = 0.02  # of the root mean square of a coordinate's slope
PATIENCE = 12  # steps without progress before the step is halved
KEEP = 16  # labels that a new one is compared with
STEP = 0.03  # of the bound: what the first step of an ascent would gain if the bound were linear


class Kernels(Protocol):
    """Both implementations do the same operations in the same order, so their answers are equal bit for bit."""

    @property
    def name(self) -> str:
        """Of the solver that uses them."""
        ...

    def grid_bound(self, grid: "Grid", multipliers: "Floats", share: float) -> float:
        """The Lagrangian bound by layers; `share` of the sums in the round trip. FAR when there is no path."""
        ...

    def ascend_grid(
        self, grid: "Grid", multipliers: "Floats", scale: "Floats", steps: int, target: float
    ) -> tuple[float, "Floats"]:
        """The best bound by layers met from the multipliers on, and its multipliers; stops at the target."""
        ...

    def list_stages(
        self, grid: "Grid", multipliers: "Floats", cutoff: float, hashes: "NDArray[np.uint64]", most: tuple[int, int]
    ) -> "tuple[Stages, Chains] | None":
        """Stages of every assignment below the cutoff, by start; None when they or their labels exceed `most`."""
        ...

    def ascend_items(
        self,
        grid: "Grid",
        stages: "Stages",
        low: tuple[float, float],
        multipliers: "Floats",
        scale: "Floats",
        steps: int,
        target: float,
    ) -> tuple[float, "Floats"]:
        """As ascend_grid, over stages in a box whose slowest stages take `low` seconds at least."""
        ...

    def best_path(
        self,
        first: "NDArray[np.int64]",
        source: int,
        stop: "NDArray[np.int32]",
        rows: "Floats",
        rest: "Floats",
        numbers: "Floats",
        single: bool,
        most: int,
    ) -> tuple[float, float, int, list[int]]:
        """The path of least max(work, slow) within the budget: its value, the least value dropped, paths made, its items.

        first: item ranges by state; rows [4, item]: work, slow, sensitivity, and their mix with what must follow, by which
        the items of a state are sorted; rest [3, state]; numbers: cutoff, share of work, price, budget, bucket, both at start.
        """
        ...
