"""Calibration: how much of a core each throttled group really gets, at 1, 10 and 100 ms of work.

python benchmarks/hetero/calibration.py 1.0 0.25

A run whose shares are off by more than 10 % at any of the three says nothing about a plan and is discarded. The share is CPU
time by the clock: what the quota decides. The speed beside an unthrottled process is printed too; on a machine whose cores change
their speed from second to second it says as much about that as about the group.
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
LEAST_S = 1.0  # of work at every length, over all rounds
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Calibration:
    """`cores[w]`: CPU seconds per second at that length of work; `speed[w]`: work per second beside an unthrottled process.

    Both are medians over rounds.
    """

    name: str
    asked: float
    cores: dict[float, float]
    speed: dict[float, float]

    @property
    def is_good(self) -> bool:
        return all(abs(share / self.asked - 1) <= TOLERANCE for share in self.cores.values())

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.3f} ({self.speed[work]:.3f}) at {work * 1000:g} ms" for work, share in self.cores.items())
        verdict = "" if self.is_good else ": off by more than 10 %"
        return f"{self.name}: asked {self.asked:g} of a core, got (and was as fast as) {shares}{verdict}"


@dataclass(frozen=True, slots=True)
class Round:
    """seconds_per_turn: by the clock; cores: CPU seconds per second."""

    seconds_per_turn: float
    cores: float


def calibrate(limits: dict[str, Limits], made: dict[str, Group], least_s: float = LEAST_S) -> tuple[Calibration, ...]:
    """Every group, one after the other, in turns with an unthrottled process."""
    found = []
    for name, group in made.items():
        pairs = [(_rounds(None, least_s / ROUNDS), _rounds(group, least_s / ROUNDS)) for _ in range(ROUNDS)]
        cores = {work: median(held[work].cores for _, held in pairs) for work in WORK_S}
        speed = {
            work: median(free[work].seconds_per_turn / held[work].seconds_per_turn for free, held in pairs) for work in WORK_S
        }
        found.append(Calibration(name, limits[name].cores, cores, speed))
    return tuple(found)


def _rounds(group: Group | None, least_s: float) -> dict[float, Round]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(there, least_s))
    process.start()
    there.close()
    here.recv()
    if group is not None and process.pid is not None:
        group.add(process.pid)
    here.send("go")
    found: dict[float, Round] = here.recv()
    process.join()
    return found


def _measure(connection: Connection, least_s: float) -> None:
    """A piece of work is a fixed number of turns, found by its CPU time, which throttling leaves alone."""
    connection.send("ready")
    connection.recv()
    turns_per_s = median(_cpu_speed() for _ in range(5))
    found = {}
    for work in WORK_S:
        turns, pieces = max(1, round(work * turns_per_s)), max(1, round(least_s / work))
        start, used = time.perf_counter(), time.process_time()
        for _ in range(pieces):
            _spin(turns)
        passed, used = time.perf_counter() - start, time.process_time() - used
        found[work] = Round(passed / (pieces * turns), used / passed)
    connection.send(found)


def _cpu_speed(turns: int = 100_000) -> float:
    start = time.process_time()
    _spin(turns)
    return turns / (time.process_time() - start)


def _spin(turns: int) -> int:
    mixed = 0
    for number in range(turns):
        mixed ^= number  # stays small: a growing sum would make long pieces slower than short ones
    return mixed


def main(shares: list[float]) -> int:
    limits = {f"device-{index}": Limits(share) for index, share in enumerate(shares)}
    with groups(limits) as made:
        found = calibrate(limits, made)
    print("\n".join(map(str, found)))
    return 0 if all(calibration.is_good for calibration in found) else 1


if __name__ == "__main__":
    raise SystemExit(main([float(share) for share in sys.argv[1:]]))
