"""Python kernels: the twin of kernels.c, for machines without a C compiler and for tests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.exact.stages import Chains, Stages
from llmpq.solver.exact.twin_grid import Plain, ascend, grid_oracle, grid_value
from llmpq.solver.exact.twin_paths import Finder, Items, item_oracle
from llmpq.solver.exact.twin_stages import FullError, Lister

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmpq.solver.exact.grid import Grid

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PythonKernels:
    """The inner loops in Python: the same answers as those in C, bit for bit, some hundred times slower."""

    name: str = "exact-python"

    def grid_bound(self, grid: "Grid", multipliers: "Floats", share: float) -> float:
        plain, at = Plain.of(grid), multipliers.tolist()
        return grid_value(plain, at, plain.share(at) if share < 0.0 else share)[0]

    def ascend_grid(
        self, grid: "Grid", multipliers: "Floats", scale: "Floats", steps: int, target: float
    ) -> tuple[float, "Floats"]:
        plain = Plain.of(grid)
        return ascend(plain, lambda at: grid_oracle(plain, at), multipliers.tolist(), scale.tolist(), steps, target)

    def list_stages(
        self, grid: "Grid", multipliers: "Floats", cutoff: float, hashes: "NDArray[np.uint64]", most: tuple[int, int]
    ) -> tuple[Stages, Chains] | None:
        lister = Lister.of(Plain.of(grid), multipliers.tolist(), cutoff, hashes.tolist(), most)
        try:
            lister.run()
        except FullError:
            return None
        start, stop, chain = (np.array(part, np.int32) for part in (lister.start, lister.stop, lister.chain))
        figures = np.array(lister.figures, np.float64).reshape(-1, 5)
        return Stages(start, stop, figures, chain), Chains(np.array(lister.parent, np.int32), np.array(lister.option, np.uint8))

    def ascend_items(
        self,
        grid: "Grid",
        stages: Stages,
        low: tuple[float, float],
        multipliers: "Floats",
        scale: "Floats",
        steps: int,
        target: float,
    ) -> tuple[float, "Floats"]:
        plain, items = Plain.of(grid), Items(stages.start.tolist(), stages.stop.tolist(), stages.figures.tolist(), low)
        return ascend(plain, lambda at: item_oracle(plain, items, at), multipliers.tolist(), scale.tolist(), steps, target)

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
        finder = Finder(first.tolist(), stop.tolist(), rows.tolist(), rest.tolist(), numbers.tolist(), single, most)
        finder.run(source)
        return finder.least, finder.dropped, finder.count, finder.items()
