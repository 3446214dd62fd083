"""Startup: seconds until a plan's search begins, from a graph that ships, from the user's cache and by tracing, side by side.

python benchmarks/startup.py [--rounds 7] [--json FILE]
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from machine import machine
from rich.console import Console
from rich.table import Table

from llmpq.frontend.models import bundled_configurations

MODEL = "llama-3-70b"
UNTIL_SEARCH = ("--cluster", "4xL4,2xA100-40", "--batch-size", "32", "--prompt-len", "512", "--gen-len", "100")
RESULTS = Path(__file__).parent / "results" / "startup.json"
LLMPQ = (sys.executable, "-m", "llmpq")


@dataclass(frozen=True, slots=True)
class Case:
    """`arguments` of a process; `cache`: the folder that it finds traced graphs in, None: an empty one each time."""

    name: str
    arguments: tuple[str, ...]
    cache: Path | None


@dataclass(frozen=True, slots=True)
class Row:
    """Wall and CPU seconds of whole processes: medians with quartiles; `ratio`: wall of this by that of Python alone."""

    name: str
    wall_s: float
    wall_quartiles_s: tuple[float, float]
    cpu_s: float
    cpu_quartiles_s: tuple[float, float]
    ratio: float


def cases(folder: Path) -> tuple[Case, ...]:
    """The model's configuration under a name of its own is no bundled model: it is traced, or found in the cache."""
    own, warm = folder / "own-70b", folder / "warm"
    own.mkdir()
    shutil.copyfile(bundled_configurations()[MODEL], own / "config.json")
    plan = (*LLMPQ, "plan")
    stop = (*UNTIL_SEARCH, "--stop-after", "estimate-sensitivity", "--json")
    return (
        Case("python -c pass", (sys.executable, "-c", "pass"), warm),
        Case("python -c 'import torch, transformers'", (sys.executable, "-c", "import torch, transformers"), warm),
        Case("llmpq --help", (*LLMPQ, "--help"), warm),
        Case(f"llmpq plan {MODEL}, up to the search", (*plan, MODEL, *stop), warm),
        Case("the same from the user's cache", (*plan, str(own), *stop), warm),
        Case("the same, traced", (*plan, str(own), *stop), None),
    )


def run(case: Case) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    with cache_of(case) as cache:
        environment = {**os.environ, "LLMPQ_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        before, started = os.times(), time.perf_counter()
        subprocess.run(case.arguments, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


@contextmanager
def cache_of(case: Case) -> Iterator[Path]:
    with TemporaryDirectory() as empty:
        yield case.cache or Path(empty)


def measure(rounds: int) -> list[Row]:
    """One process of each case per round, in turn, after a round that fills the caches and is not counted."""
    with TemporaryDirectory() as folder:
        all_cases = cases(Path(folder))
        found = [[run(case) for case in all_cases] for _ in range(rounds + 1)][1:]
    seconds = [tuple(zip(*column)) for column in zip(*found)]
    base = statistics.median(seconds[0][0])
    return [row(case.name, wall, cpu, base) for case, (wall, cpu) in zip(all_cases, seconds, strict=True)]


def row(name: str, wall: tuple[float, ...], cpu: tuple[float, ...], base: float) -> Row:
    middle = statistics.median(wall)
    return Row(name, round(middle, 3), quartiles(wall), round(statistics.median(cpu), 3), quartiles(cpu), round(middle / base, 1))


def quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return round(low, 3), round(high, 3)


@click.command()
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results/startup.json")
def main(rounds: int, path: Path) -> None:
    """Measure every case and write the result."""
    rows = measure(rounds)
    table = Table("process", "wall s (quartiles)", "CPU s (quartiles)", "wall / Python alone")
    for found in rows:
        spans = ("{:.2f}–{:.2f}".format(*found.wall_quartiles_s), "{:.2f}–{:.2f}".format(*found.cpu_quartiles_s))
        table.add_row(found.name, f"{found.wall_s:.2f} ({spans[0]})", f"{found.cpu_s:.2f} ({spans[1]})", f"{found.ratio:.1f}")
    Console().print(table)
    path.write_text(
        json.dumps({"machine": machine(), "rounds": rounds, "rows": [asdict(each) for each in rows]}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
