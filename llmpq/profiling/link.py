"""Local link: what a message between two processes of this machine takes, by gloo over loopback."""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from llmpq.hardware.link import Link
from llmpq.profiling.two_processes import joined

SIZES = (4 * 2**10, 64 * 2**10, 2**20, 8 * 2**20)  # bytes of a message
ROUNDS = 15


def measure_link() -> Link:
    """Latency and bandwidth fitted to round trips with a second process. Raises BackendError when it does not answer."""
    with joined(__name__):
        return fit([(size, _trip_s(size)) for size in SIZES])


def answer() -> None:
    """The other end: every message back to where it came from."""
    for size in SIZES:
        message = torch.empty(size, dtype=torch.uint8)
        for _ in range(ROUNDS):
            dist.recv(message, 0)
            dist.send(message, 0)


def fit(trips: Sequence[tuple[int, float]]) -> Link:
    """Latency of the smallest message, and the bandwidth at which its size grows to the largest; trips: (bytes, seconds)."""
    (small, quick), (large, slow) = min(trips), max(trips)
    beta = max(slow - quick, 1e-9) / (large - small)
    return Link(1.0 / beta, max(0.0, quick - small * beta), "measured")


def _trip_s(size: int) -> float:
    """One way: half of the first quartile of round trips, which other processes can only lengthen."""
    message, seconds = torch.zeros(size, dtype=torch.uint8), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        dist.send(message, 1)
        dist.recv(message, 1)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[ROUNDS // 4] / 2
