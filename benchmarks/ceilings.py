"""Ceilings: what one core of this machine reads per second and multiplies per second at most, measured out of registers.

python benchmarks/ceilings.py [--seconds 30] [--processes 2]      how steady they are, and what processes leave each other
"""

import ctypes
import multiprocessing
import time
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import click
import torch

from llmpq.native import load_library

SOURCE = Path(__file__).with_suffix(".c")
READ_BYTES = 256 << 20  # beyond any cache
TURNS, SUMS = 4_000_000, 12
ROUNDS = 7
STEADY_READ_BYTES, STEADY_TURNS = 64 << 20, 400_000  # of a process that goes on: 4 ms and 2 ms


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


def rates(seconds: float) -> tuple[list[float], list[float]]:
    """Bytes per second and bfloat16 operations per second, in turns for so long."""
    library, memory = load_library(SOURCE, ("-O3",), this_cpu=True), torch.ones(STEADY_READ_BYTES, dtype=torch.uint8)
    assert library is not None and library.is_supported(), "AVX-512 VNNI and bfloat16, and a C compiler"
    library.bfloat16_products.restype = ctypes.c_float
    read, multiplied, end = [], [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        library.read_all(c_void_p(memory.data_ptr()), c_int64(STEADY_READ_BYTES))
        between = time.perf_counter()
        library.bfloat16_products(c_int64(STEADY_TURNS))
        read.append(STEADY_READ_BYTES / (between - start))
        multiplied.append(STEADY_TURNS * SUMS * 64 / (time.perf_counter() - between))
    return read, multiplied


@click.command()
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--processes", default=2, show_default=True, help="At once, each on what core it gets.")
def main(seconds: float, processes: int) -> None:
    """Median, and the first and last tenth."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for count in sorted({1, processes}):
            for number, (read, multiplied) in enumerate(pool.map(rates, [seconds] * count, chunksize=1)):
                click.echo(f"{count} at once, process {number}: reads {told(read)} GB/s, multiplies {told(multiplied)} Gflop/s")


def told(rate: list[float]) -> str:
    low, *_, high = quantiles(rate, n=10)
    return f"{median(rate) / 1e9:.1f} ({low / 1e9:.1f}-{high / 1e9:.1f})"


if __name__ == "__main__":
    main()
