"""Local link: what a message between two processes of this machine takes, by gloo over loopback."""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from llmpq.errors import BackendError
from llmpq.hardware.link import Link

SIZES = (4 * 2**10, 64 * 2**10, 2**20, 8 * 2**20)  # bytes of a message
ROUNDS = 15
TIMEOUT_S = 60.0
PEER = "from llmpq.profiling.link import answer; answer({port})"


def measure_link() -> Link:
    """Latency and bandwidth fitted to round trips with a second process. Raises BackendError when it does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    peer = subprocess.Popen([sys.executable, "-c", PEER.format(port=port)])
    try:
        _join(port, 0)
        return fit([(size, _trip_s(size)) for size in SIZES])
    except (RuntimeError, dist.DistError) as error:
        raise BackendError(
            f"the process at the other end of the link did not answer: {error}; try again, or --no-link"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        peer.kill()
        peer.wait()


def answer(port: int) -> None:
    """The other end: every message back to where it came from."""
    _join(port, 1)
    for size in SIZES:
        message = torch.empty(size, dtype=torch.uint8)
        for _ in range(ROUNDS):
            dist.recv(message, 0)
            dist.send(message, 0)
    time.sleep(TIMEOUT_S)  # the measuring process ends this one once it has its answers


def fit(trips: Sequence[tuple[int, float]]) -> Link:
    """Latency of the smallest message, and the bandwidth at which its size grows to the largest; trips: (bytes, seconds)."""
    (small, quick), (large, slow) = min(trips), max(trips)
    beta = max(slow - quick, 1e-9) / (large - small)
    return Link(1.0 / beta, max(0.0, quick - small * beta), "measured")


def _join(port: int, rank: int) -> None:
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timeout)


def _trip_s(size: int) -> float:
    """One way: half of the first quartile of round trips, which other processes can only lengthen."""
    message, seconds = torch.zeros(size, dtype=torch.uint8), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        dist.send(message, 1)
        dist.recv(message, 1)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[ROUNDS // 4] / 2
