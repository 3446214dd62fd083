"""Native kernels: the C file, compiled once per machine and version into the user's cache, called through ctypes."""

import ctypes
from ctypes import Structure, byref, c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpq.native import load_library
from llmpq.solver.exact.kernels import FAR, STEP
from llmpq.solver.exact.stages import Chains, Stages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmpq.solver.exact.grid import Grid

    Floats = NDArray[np.float64]

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O2", "-ffp-contract=off")  # no contraction: the same sums as the Python twin
INTEGERS = ("devices", "layers", "options", "kinds", "overlap", "first", "last")
ARRAYS = ("kind", "reach", "prefill", "decode", "bytes", "sensitivity", "capacity", "link_prefill", "link_decode", "ends")
FLAG_ARRAYS = ("allowed", "arcs")
NUMBERS = ("prefill_slowest", "decode_sum", "decode_slowest", "round_trip", "micro_batches", "theta", "budget")
CAPS = ("cap_prefill", "cap_decode")


class GridStruct(Structure):
    """`Grid` of kernels.c."""

    _fields_ = [
        *((name, c_int32) for name in INTEGERS),
        *((name, c_void_p) for name in ARRAYS + FLAG_ARRAYS),
        *((name, c_double) for name in NUMBERS + CAPS),
    ]


class ItemsStruct(Structure):
    """`Items` of kernels.c."""

    _fields_ = [("count", c_int64), *((name, c_void_p) for name in ("start", "stop", "figures"))]
    _fields_ += [("low_prefill", c_double), ("low_decode", c_double)]


@dataclass(frozen=True, slots=True)
class NativeKernels:
    """The inner loops in C."""

    library: ctypes.CDLL
    name: str = "exact-c"

    def grid_bound(self, grid: "Grid", multipliers: "Floats", share: float) -> float:
        return float(self.library.grid_bound(byref(_struct(grid)), _address(multipliers), c_double(share)))

    def ascend_grid(
        self, grid: "Grid", multipliers: "Floats", scale: "Floats", steps: int, target: float
    ) -> tuple[float, "Floats"]:
        at = multipliers.copy()
        numbers = (c_int32(steps), c_double(min(target, FAR)), c_double(STEP))
        return float(self.library.ascend_grid(byref(_struct(grid)), _address(at), _address(scale), *numbers)), at

    def list_stages(
        self, grid: "Grid", multipliers: "Floats", cutoff: float, hashes: "NDArray[np.uint64]", most: tuple[int, int]
    ) -> tuple[Stages, Chains] | None:
        start, stop, chain = (np.empty(most[0], np.int32) for _ in range(3))
        figures, chains = np.empty((most[0], 5)), Chains(np.empty(most[1], np.int32), np.empty(most[1], np.uint8))
        written = (start, stop, figures, chain, chains.parent, chains.option)
        count = self.library.list_stages(
            *(byref(_struct(grid)), _address(multipliers), c_double(cutoff), _address(hashes), *map(c_int64, most)),
            *(_address(array) for array in written),
        )
        if count < 0:
            return None
        return Stages(start[:count].copy(), stop[:count].copy(), figures[:count].copy(), chain[:count].copy()), chains

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
        at = multipliers.copy()
        arrays = [_address(array) for array in (stages.start, stages.stop, stages.figures)]
        items = ItemsStruct(len(stages), *arrays, *low)
        numbers = (c_int32(steps), c_double(min(target, FAR)), c_double(STEP))
        best = self.library.ascend_items(byref(_struct(grid)), byref(items), _address(at), _address(scale), *numbers)
        return float(best), at

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
        path, answer, states = np.empty(len(first), np.int32), np.empty(3), len(first) - 1
        length = self.library.best_path(
            *(c_int32(states), c_int32(single), c_int32(source)),
            *(_address(numbers), _address(first), _address(stop), _address(rows)),
            *(c_int64(len(stop)), _address(rest), c_int32(most), _address(path), _address(answer)),
        )
        return float(answer[0]), float(answer[1]), int(answer[2]), [int(item) for item in path[:length][::-1]]


def _address(array: "NDArray[Any]") -> c_void_p:
    return c_void_p(array.ctypes.data)


def _struct(grid: "Grid") -> GridStruct:
    """The grid as C sees it; its arrays belong to the grid."""
    figures = grid.figures
    devices, layers, options = figures.shape
    integers = (devices, layers, options, figures.problem.num_kinds, figures.problem.overlap, grid.first, grid.last)
    arrays = [figures.kind, grid.reach, *(getattr(figures, name) for name in ARRAYS[2:]), figures.allowed, grid.arcs]
    numbers = [min(float(getattr(figures, name)), FAR) for name in NUMBERS]
    caps = (min(grid.caps.prefill, FAR), min(grid.caps.decode, FAR))
    return GridStruct(*integers, *map(_address, arrays), *numbers, *caps)


@cache
def native_kernels() -> NativeKernels | None:
    """The compiled kernels; None where there is no working C compiler."""
    library = load_library(SOURCE, FLAGS)
    if library is None:
        return None
    for name in ("grid_bound", "ascend_grid", "ascend_items"):
        getattr(library, name).restype = c_double
    library.list_stages.restype = c_int64
    library.best_path.restype = c_int32
    return NativeKernels(library)
