"""Ceilings: what one core of this machine reads per second and multiplies per second at most, measured out of registers."""

import ctypes
import time
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from llmpq.native import load_library

SOURCE = Path(__file__).with_suffix(".c")
READ_BYTES = 256 << 20  # beyond any cache
TURNS, SUMS = 4_000_000, 12
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read and operations (a product and its sum are two) per second of one core; medians."""

    read_bytes_per_s: float
    bfloat16_flops: float
    int8_ops: float

    def of(self, kernel: str, rows: int, columns: int, tokens: int, weight_bytes: int, seconds: float) -> dict[str, float]:
        """The shares of them that a product has reached."""
        flops = self.int8_ops if kernel.startswith("w8a8") else self.bfloat16_flops
        return {
            "of_bandwidth": weight_bytes / seconds / self.read_bytes_per_s,
            "of_flops": 2 * rows * columns * tokens / seconds / flops,
        }


def ceilings() -> Ceilings | None:
    """None on a CPU without AVX-512 VNNI and bfloat16, or without a C compiler."""
    library = load_library(SOURCE, ("-O3",), this_cpu=True)
    if library is None or not library.is_supported():
        return None
    library.bfloat16_products.restype = ctypes.c_float
    memory = torch.ones(READ_BYTES, dtype=torch.uint8)
    turns, place = c_int64(TURNS), c_void_p(memory.data_ptr())
    return Ceilings(
        READ_BYTES / _seconds(lambda: library.read_all(place, c_int64(READ_BYTES))),
        TURNS * SUMS * 64 / _seconds(lambda: library.bfloat16_products(turns)),
        TURNS * SUMS * 128 / _seconds(lambda: library.int8_products(turns)),
    )


def _seconds(run: Callable[[], object]) -> float:
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)
