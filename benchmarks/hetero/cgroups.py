"""Throttled groups: processes held to a share of a core and to a memory limit, by Linux control groups (v1 or v2)."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 5_000  # short, so that a stage's step of some milliseconds sees the share and not a burst
LEAST_QUOTA_US = 1_000  # the kernel refuses less
WEIGHTS = {1: {"cpu.shares": "262144"}, 2: {"cpu.weight": "10000"}}  # the most: against a group what is outside counts little
MOST_CORES = 0.8  # of the machine's, for the sum of all shares: the rest is for the launcher and the kernel
PREFIX = "llmpq-hetero"


class CgroupError(Exception):
    """The machine does not allow what was asked; the message says what and why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`cores`: share of one core, e.g. 0.25; `memory_bytes`: resident limit, None for none."""

    cores: float
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        least = LEAST_QUOTA_US / PERIOD_US
        if not least <= self.cores <= 1:
            raise CgroupError(f"a share of {self.cores:g} cores; expected {least:g} to 1 (one thread per stage)")

    @property
    def quota_us(self) -> int:
        return round(self.cores * PERIOD_US)


@dataclass(frozen=True, slots=True)
class Group:
    """One control group: the folders that stand for it, one per controller in v1, a single one in v2.

    core: the only one that its processes run on; one that moves leaves a part of its quota behind. None: any.
    """

    name: str
    folders: tuple[Path, ...]
    core: int | None = None

    def add(self, pid: int) -> None:
        """Move a process, all its threads and its future children."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))
        if self.core is not None:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), {self.core})

    def pids(self) -> tuple[int, ...]:
        return tuple(int(line) for line in (self.folders[0] / "cgroup.procs").read_text().split())

    def throttled_s(self) -> float:
        """Seconds that its processes were held back."""
        stat = dict(line.split() for line in (self.folders[0] / "cpu.stat").read_text().splitlines())
        return int(stat["throttled_usec"]) / 1e6 if "throttled_usec" in stat else int(stat["throttled_time"]) / 1e9


def version() -> int:
    """2 when the unified hierarchy holds the cpu controller, 1 when it has a hierarchy of its own; CgroupError otherwise."""
    controllers = ROOT / "cgroup.controllers"
    if controllers.exists() and "cpu" in controllers.read_text().split():
        return 2
    if (ROOT / "cpu" / "cpu.cfs_quota_us").exists() or (ROOT / "cpu" / "tasks").exists():
        return 1
    raise CgroupError(f"no cpu controller under {ROOT}; unlike devices on one machine need Linux with control groups and root")


def unavailable() -> str | None:
    """Why groups cannot be made here, None when they can."""
    try:
        version()
        with groups({"probe": Limits(0.5)}):
            return None
    except (CgroupError, OSError) as error:
        return f"control groups cannot be used: {error}"


@contextmanager
def groups(limits: dict[str, Limits]) -> Iterator[dict[str, Group]]:
    """One group per name. On leaving, however that happens, their processes are killed and the groups removed."""
    allowed = MOST_CORES * len(os.sched_getaffinity(0))
    total = sum(limit.cores for limit in limits.values())
    if total > allowed + 1e-9:
        raise CgroupError(f"shares of {total:g} cores in all; at most {allowed:g} keep this machine from deciding the result")
    remove_stale()
    cores = shared_out({name: limit.cores for name, limit in limits.items()}, sorted(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        made = {}
        for name, limit in limits.items():
            group = Group(name, _folders(f"{PREFIX}-{os.getpid()}-{name}"), cores[name])
            stack.callback(_remove, group)
            _create(group, limit)
            made[name] = group
        yield made


def shared_out(shares: dict[str, float], cores: list[int]) -> dict[str, int]:
    """The core of each group: the largest share first, each on the core with the least on it."""
    load, found = dict.fromkeys(cores, 0.0), {}
    for name in sorted(shares, key=lambda name: -shares[name]):
        found[name] = min(load, key=lambda core: load[core])
        load[found[name]] += shares[name]
    return found


def remove_stale() -> tuple[str, ...]:
    """Remove the groups that a killed run left behind; their names."""
    removed = []
    for parent in dict.fromkeys(folder.parent for folder in _folders("x")):
        for folder in parent.glob(f"{PREFIX}-*"):
            pid = folder.name.removeprefix(f"{PREFIX}-").split("-")[0]
            if not Path(f"/proc/{pid}").exists():
                _remove(Group(folder.name, (folder,)))
                removed.append(folder.name)
    return tuple(dict.fromkeys(removed))


def _folders(name: str) -> tuple[Path, ...]:
    return (ROOT / name,) if version() == 2 else (ROOT / "cpu" / name, ROOT / "memory" / name)


def _create(group: Group, limits: Limits) -> None:
    for folder in group.folders:
        folder.mkdir(exist_ok=True)
    first, last = group.folders[0], group.folders[-1]
    if version() == 2:
        (ROOT / "cgroup.subtree_control").write_text("+cpu +memory")
        _write(first, {"cpu.max": f"{limits.quota_us} {PERIOD_US}", **WEIGHTS[2]})
        with suppress(OSError):
            (first / "cpu.max.burst").write_text("0")
        if limits.memory_bytes is not None:
            _write(last, {"memory.max": str(limits.memory_bytes)})
        return
    _write(first, {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(limits.quota_us), **WEIGHTS[1]})
    if (first / "cpu.cfs_burst_us").exists():
        _write(first, {"cpu.cfs_burst_us": "0"})
    if limits.memory_bytes is not None:
        _write(last, {"memory.limit_in_bytes": str(limits.memory_bytes)})


def _write(folder: Path, values: dict[str, str]) -> None:
    for name, value in values.items():
        try:
            (folder / name).write_text(value)
        except OSError as error:
            raise CgroupError(f"{folder / name} refused {value!r}: {error.strerror}; root is needed") from None


def _remove(group: Group) -> None:
    for folder in group.folders:
        _empty(folder)
        for _ in range(100):
            try:
                if folder.exists():
                    folder.rmdir()
                break
            except OSError:  # a killed process is still being reaped
                time.sleep(0.02)


def _empty(folder: Path) -> None:
    """Kill what is still in the group."""
    with suppress(OSError):
        for pid in map(int, (folder / "cgroup.procs").read_text().split()):
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                (folder.parent / "cgroup.procs").write_text(str(pid))


def orphans() -> tuple[Path, ...]:
    """Groups of this process that still exist: none after `groups` was left."""
    own = f"{PREFIX}-{os.getpid()}-"
    return tuple(path for parent in dict.fromkeys(f.parent for f in _folders("x")) for path in parent.glob(f"{own}*"))
