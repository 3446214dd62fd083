"""Planner benchmark: the exact solver against HiGHS, problem by problem, side by side in one run."""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import machine

from llmpq.solver.milp import solve as solve_by_highs
from llmpq.solver.problem import load_problem
from llmpq.solver.solution import Solution
from llmpq.solver.solve import solve as solve_exactly

HERE = Path(__file__).parent
PROBLEMS = HERE / "data" / "planning"
RESULT = HERE / "results" / "planner.json"
NAME = re.compile(r"L(?P<layers>\d+)_N(?P<devices>\d+)_s(?P<seed>\d+)-(?P<family>[a-d])")
TOLERANCE = 1e-4  # of the best known objective
FULL_LIMIT_S, QUICK_LIMIT_S = 60.0, 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one solver answered, and seconds by the wall and of CPU from parsed problem to answer."""

    solver: str
    objective: float | None
    bound: float | None
    proven: bool
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One problem; process_s: the whole of `llmpq solve FILE`; best_known: objective, and whether it was proven."""

    name: str
    layers: int
    devices: int
    family: str
    best_known: float
    best_known_proven: bool
    exact: Run
    process_s: float
    highs: Run | None

    @property
    def reached(self) -> bool:
        return self.exact.objective is not None and self.exact.objective <= self.best_known * (1 + TOLERANCE)


def main() -> None:
    if sys.argv[1:2] == ["--search"]:
        import full_search

        full_search.main(sys.argv[2:])
        return
    arguments = parsed()
    names = sorted(path.stem for path in PROBLEMS.glob("*.json"))
    against = {name for name in names if arguments.highs and (not arguments.quick or "_s10-" in name)}
    limit = QUICK_LIMIT_S if arguments.quick else FULL_LIMIT_S
    solve_exactly(load_problem(PROBLEMS / f"{names[0]}.json"))  # imports, and the first build of the kernels
    rows = [measured(name, limit if name in against else None) for name in names]
    medians = summary(rows)
    show(medians)
    result = {"machine": machine(), "gap": TOLERANCE, "highs_limit_s": limit, "medians": medians}
    result["problems"] = [asdict(row) | {"reached": row.reached} for row in rows]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    missed = [row.name for row in rows if not (row.reached and row.exact.proven)]
    print(f"{len(rows)} problems, {len(rows) - len(missed)} reached within {TOLERANCE:g} of the best known and proven", *missed)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", action="store_true", help="the full search instead (full_search.py); comes first")
    parser.add_argument("--quick", action="store_true", help="HiGHS on one seed of each size and family, ten seconds at most")
    parser.add_argument("--no-highs", dest="highs", action="store_false", help="the exact solver alone")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args()


def measured(name: str, highs_limit_s: float | None) -> Row:
    match = NAME.fullmatch(name)
    assert match is not None, name
    path = PROBLEMS / f"{name}.json"
    problem, best = load_problem(path), json.loads(path.read_text())["best_known"]
    exact = timed(lambda: solve_exactly(problem))
    highs = None if highs_limit_s is None else timed(lambda: solve_by_highs(problem, time_limit_s=highs_limit_s))
    sizes = int(match["layers"]), int(match["devices"])
    row = Row(name, *sizes, match["family"], best["objective"], best["proven"], exact, process_seconds(path), highs)
    print(line(row), file=sys.stderr, flush=True)
    return row


def timed(run: Callable[[], Solution]) -> Run:
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    return Run(found.solver, found.objective, found.bound, found.proven, *seconds)


def process_seconds(path: Path) -> float:
    """Wall seconds of the command, interpreter and imports included."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "llmpq", "solve", str(path)], check=True, capture_output=True)
    return time.perf_counter() - started


def line(row: Row) -> str:
    highs = "" if row.highs is None else f"  highs {row.highs.wall_s:.2f} s{'' if row.highs.proven else ' not proven'}"
    change = (row.exact.objective or 0.0) / row.best_known - 1.0
    proven = "proven" if row.exact.proven else "NOT PROVEN"
    return f"{row.name:16s} {change:+.1e} {proven}  {row.exact.wall_s:.3f} s, process {row.process_s:.2f} s{highs}"


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Medians by size and family; ratios only over problems that both solved."""
    groups: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.layers, row.devices, row.family), []).append(row)
    return [group_summary(key, group) for key, group in sorted(groups.items())]


def group_summary(key: tuple[int, int, str], group: list[Row]) -> dict[str, Any]:
    against = [row for row in group if row.highs is not None]
    ratios = [row.highs.wall_s / row.exact.wall_s for row in against if row.highs is not None]
    return {
        "size": f"{key[0]}x{key[1]}",
        "family": key[2],
        "problems": len(group),
        "proven": sum(row.exact.proven and row.reached for row in group),
        "exact_s": statistics.median(row.exact.wall_s for row in group),
        "exact_cpu_s": statistics.median(row.exact.cpu_s for row in group),
        "process_s": statistics.median(row.process_s for row in group),
        "highs_problems": len(against),
        "highs_proven": sum(row.highs.proven for row in against if row.highs is not None),
        "highs_s": statistics.median(row.highs.wall_s for row in against if row.highs is not None) if against else None,
        "ratio": statistics.median(ratios) if ratios else None,
    }


def show(medians: list[dict[str, Any]]) -> None:
    print("| size | family | proven | exact s | CPU s | process s | HiGHS s | HiGHS proven | HiGHS / exact |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in medians:
        highs = "- | - | -"
        if row["highs_s"] is not None:
            highs = f"{row['highs_s']:.2f} | {row['highs_proven']}/{row['highs_problems']} | {row['ratio']:.0f}x"
        exact = f"{row['exact_s']:.3f} | {row['exact_cpu_s']:.3f} | {row['process_s']:.2f}"
        print(f"| {row['size']} | {row['family']} | {row['proven']}/{row['problems']} | {exact} | {highs} |")


if __name__ == "__main__":
    main()
