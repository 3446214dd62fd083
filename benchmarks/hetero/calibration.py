"""Calibration: how fast each throttled group really is, at 1, 10 and 100 ms of work.

python benchmarks/hetero/calibration.py 1.0 0.25

A run whose shares are off by more than 10 % at any of the three says nothing about a plan and is discarded.
"""

import multiprocessing
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from hetero.cgroups import Group, Limits, groups

WORK_S = (0.001, 0.010, 0.100)
TOLERANCE = 0.10
LEAST_S = 0.6  # of work at every length, so that many periods are averaged


@dataclass(frozen=True, slots=True)
class Calibration:
    """`cores[w]`: share of an unthrottled core at that length of work, mean over consecutive pieces."""

    name: str
    asked: float
    cores: dict[float, float]

    @property
    def is_good(self) -> bool:
        return all(abs(share / self.asked - 1) <= TOLERANCE for share in self.cores.values())

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.3f} at {work * 1000:g} ms" for work, share in self.cores.items())
        return f"{self.name}: asked {self.asked:g} of a core, got {shares}{'' if self.is_good else ': off by more than 10 %'}"


def calibrate(limits: dict[str, Limits], made: dict[str, Group], least_s: float = LEAST_S) -> tuple[Calibration, ...]:
    """Every group, one after the other, against an unthrottled process beside it in time."""
    found = []
    for name, group in made.items():
        free, held = _rounds(None, least_s), _rounds(group, least_s)
        found.append(Calibration(name, limits[name].cores, {work: free[work] / held[work] for work in WORK_S}))
    return tuple(found)


def _rounds(group: Group | None, least_s: float) -> dict[float, float]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(there, least_s))
    process.start()
    there.close()
    here.recv()
    if group is not None and process.pid is not None:
        group.add(process.pid)
    here.send("go")
    seconds: dict[float, float] = here.recv()
    process.join()
    return seconds


def _measure(connection: Connection, least_s: float) -> None:
    """Seconds per piece of work; a piece is a fixed number of turns, found by its CPU time, which throttling leaves alone."""
    connection.send("ready")
    connection.recv()
    turns_per_s = median(_cpu_speed() for _ in range(5))
    seconds = {}
    for work in WORK_S:
        turns, pieces = max(1, round(work * turns_per_s)), max(3, round(least_s / work))
        start = time.perf_counter()
        for _ in range(pieces):
            _spin(turns)
        seconds[work] = (time.perf_counter() - start) / (pieces * turns)
    connection.send(seconds)


def _cpu_speed(turns: int = 100_000) -> float:
    start = time.process_time()
    _spin(turns)
    return turns / (time.process_time() - start)


def _spin(turns: int) -> int:
    total = 0
    for number in range(turns):
        total += number
    return total


def main(shares: list[float]) -> int:
    limits = {f"device-{index}": Limits(share) for index, share in enumerate(shares)}
    with groups(limits) as made:
        found = calibrate(limits, made)
    print("\n".join(map(str, found)))
    return 0 if all(calibration.is_good for calibration in found) else 1


if __name__ == "__main__":
    raise SystemExit(main([float(share) for share in sys.argv[1:]]))
