"""Grid: the problem with its first used device and caps on its slowest stages chosen; bounds by layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.exact.figures import Figures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmpq.solver.exact.kernels import Kernels

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int32]

MEMORY_STARTS = (0.01, 0.03, 0.1, 0.2, 0.4)  # of the bound, as the price of a device's whole memory
BUDGET_STARTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the bound, as the price of the whole budget
CAP_SCALES = (0.0, 0.5, 0.8)  # of the price of a slowest stage, when what is left of it bounds that stage
LEAST_LEFT = 1e-3  # of the whole price, for a cap: less would magnify rounding
MARGIN = 1e-9  # relative, of caps and of the reach of a stage, above what rounding could hide


@dataclass(frozen=True, slots=True)
class Caps:
    """The slowest stage of each phase that is still of interest, seconds."""

    prefill: float = np.inf
    decode: float = np.inf


@dataclass(frozen=True, slots=True)
class Grid:
    """Multipliers of its relaxation: prefill, decode, memory of each device, budget.

    reach [device, layer]: the largest end of a stage that starts there; arcs [device, device]: whether one may follow.
    """

    figures: Figures
    first: int
    caps: Caps
    reach: "Ints"
    arcs: "NDArray[np.uint8]"

    @staticmethod
    def of(figures: Figures, first: int, caps: Caps) -> "Grid":
        devices, required = figures.shape[0], figures.problem.required_devices
        arcs = np.zeros((devices, devices), np.uint8)
        for a in range(devices):
            for b in range(a + 1, devices):
                arcs[a, b] = not any(a < device < b for device in required)
        return Grid(figures, first, caps, _reach(figures, caps), arcs)

    @property
    def last(self) -> int:
        """The device that the last used one must not come before."""
        return max(self.figures.problem.required_devices, default=0)

    def start_multipliers(self, kernels: "Kernels") -> "Floats":
        """Even over the devices, with budget and memory priced by a line search."""
        figures, devices = self.figures, self.figures.shape[0]
        slow = figures.decode_slowest * (0.5 if figures.round_trip else 1.0)
        parts = (np.full(devices, figures.prefill_slowest / devices), np.full(devices, slow / devices), np.zeros(devices + 1))
        multipliers = np.concatenate(parts)
        size = abs(kernels.grid_bound(self, multipliers, -1.0))
        if np.isfinite(figures.budget):
            prices = [share * size / max(abs(figures.budget), 1e-9) for share in BUDGET_STARTS]
            multipliers = self._best_of(kernels, multipliers, slice(3 * devices, None), prices)
        memory = [share * size / np.maximum(figures.capacity, 1.0) for share in MEMORY_STARTS]
        return self._best_of(kernels, multipliers, slice(2 * devices, 3 * devices), memory)

    def _best_of(self, kernels: "Kernels", multipliers: "Floats", part: slice, values: "list[Floats] | list[float]") -> "Floats":
        best, kept = kernels.grid_bound(self, multipliers, -1.0), multipliers
        for value in values:
            trial = multipliers.copy()
            trial[part] = value
            bound = kernels.grid_bound(self, trial, -1.0)
            if bound > best:
                best, kept = bound, trial
        return kept

    def scale(self) -> "Floats":
        """Typical slopes of the bound: the seconds of an even stage, memory, budget."""
        figures, (devices, layers, _) = self.figures, self.figures.shape
        even = layers / devices
        seconds = (float(figures.prefill.mean()) * even, float(figures.decode.mean()) * even)
        spread = float(np.abs(figures.sensitivity).mean()) * layers
        budget = max(abs(figures.budget), 0.01 * spread) if np.isfinite(figures.budget) else 1.0
        memory = np.maximum(np.abs(figures.capacity), 1.0)
        return np.maximum(np.concatenate((np.repeat(seconds, devices), memory, [budget])), 1e-12)

    def capped(self, kernels: "Kernels", multipliers: "Floats", cutoff: float) -> "Grid":
        """The grid of the assignments below the cutoff: a relaxation without the price of a slowest stage bounds it."""
        figures, devices = self.figures, self.figures.shape[0]
        share = work_share(figures, float(multipliers[devices : 2 * devices].sum()))
        result = []
        for axis, slowest in enumerate((figures.prefill_slowest, figures.decode_slowest)):
            part = slice(axis * devices, (axis + 1) * devices)
            trials = [(scale, share) for scale in CAP_SCALES] + ([(0.0, 0.0)] if axis and figures.round_trip else [])
            cap = (self.caps.prefill, self.caps.decode)[axis]
            for scale, at in trials:
                trial = multipliers.copy()
                trial[part] *= scale
                left = slowest * (1.0 - at if axis and figures.round_trip else 1.0) - float(trial[part].sum())
                if left > LEAST_LEFT * slowest:
                    cap = min(cap, (cutoff - kernels.grid_bound(self, trial, at)) / left)
            result.append(max(0.0, cap * (1.0 + MARGIN)))
        return Grid.of(figures, self.first, Caps(*result))


def work_share(figures: Figures, slow: float) -> float:
    """Share of the sum of decode times in the weight of a round trip whose multipliers add up to `slow`."""
    return max(0.0, 1.0 - slow / figures.decode_slowest) if figures.round_trip and figures.decode_slowest else 1.0


def _reach(figures: Figures, caps: Caps) -> "Ints":
    """By what the layers of a stage take at least, in seconds and bytes."""
    devices, layers, _ = figures.shape
    result = np.empty((devices, layers), np.int32)
    for device in range(devices):
        ends = np.full(layers, layers)
        limits = (caps.prefill, caps.decode, float(figures.capacity[device]))
        for cells, limit in zip((figures.prefill, figures.decode, figures.bytes), limits):
            least = np.where(figures.allowed[:, device] == 0, np.inf, cells[figures.kind, device]).min(axis=1)
            blocked = ~np.isfinite(least)
            total = np.concatenate(([0.0], np.cumsum(np.where(blocked, 0.0, least))))
            ends = np.minimum(ends, np.searchsorted(total, total[:-1] + limit + MARGIN * total[-1], side="right") - 1)
            wall = np.where(blocked, np.arange(layers), layers)
            ends = np.minimum(ends, np.minimum.accumulate(wall[::-1])[::-1])
        result[device] = np.maximum(ends, np.arange(layers))
    return result
