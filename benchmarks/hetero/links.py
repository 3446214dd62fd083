"""Slow links: a network namespace whose loopback is held to a bandwidth, for the ranks that send to each other through it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hetero.cgroups import CgroupError

PREFIX = "llmpq-hetero"
FOLDER = Path("/run/netns")
MTU = 9_000  # bytes; loopback's own 65,536 would pass a decode step in one burst
BURST_BYTES = 16_384


@contextmanager
def slow_loopback(bandwidth_bytes_per_s: float) -> Iterator[Path]:
    """The namespace's file; on leaving, however that happens, it is removed. Only the bandwidth is held: the delay of
    `netem` is a module that few kernels of virtual machines have."""
    remove_stale()
    name = f"{PREFIX}-{os.getpid()}"
    _run("ip", "netns", "add", name)
    try:
        inside = ("ip", "netns", "exec", name)
        _run(*inside, "ip", "link", "set", "lo", "up", "mtu", str(MTU))
        rate = f"{round(bandwidth_bytes_per_s * 8)}bit"
        _run(*inside, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", str(BURST_BYTES), "latency", "10s")
        yield FOLDER / name
    finally:
        _run("ip", "netns", "del", name)


def remove_stale() -> tuple[str, ...]:
    """Remove the namespaces that killed runs left behind; their names."""
    left = [path.name for path in FOLDER.glob(f"{PREFIX}-*") if not Path(f"/proc/{path.name.rsplit('-', 1)[1]}").exists()]
    for name in left:
        _run("ip", "netns", "del", name)
    return tuple(left)


def unavailable() -> str | None:
    """Why links cannot be slowed here, None when they can."""
    try:
        with slow_loopback(1e6):
            return None
    except (CgroupError, OSError) as error:
        return f"links cannot be slowed: {error}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CgroupError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}; root and a kernel with tbf are needed")
