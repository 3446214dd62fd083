"""Certificate benchmark: bytes of every certificate, and CPU seconds to solve, certify and check, side by side in one run."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from machine import machine

from llmpq.commands.solve import CLOSER
from llmpq.solver.certificate.build import MOST_DEVICES, MOST_LAYERS, certify
from llmpq.solver.certificate.check import check_certificate
from llmpq.solver.problem import load_problem
from llmpq.solver.solution import DEFAULT_GAP
from llmpq.solver.solve import solve

HERE = Path(__file__).parent
PROBLEMS = HERE / "data" / "planning"
RESULT = HERE / "results" / "certificates.json"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One problem; boxes: whether its size gets leaf boxes or the weak dual alone; gap: proven by the checker."""

    name: str
    size: str
    boxes: bool
    gap: float
    leaves: int
    listed: int
    bytes: int
    solve_s: float
    certify_s: float
    check_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    paths = [path for path in sorted(PROBLEMS.glob("*.json")) if small(path) or "_s10-" in path.stem]
    solve(load_problem(paths[0]))  # imports, and the first build of the kernels
    rows = [measured(path) for path in paths]
    groups = summary(rows)
    show(groups)
    result = {"machine": machine(), "gap": DEFAULT_GAP, "groups": groups, "problems": [asdict(row) for row in rows]}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def sizes(path: Path) -> tuple[int, int]:
    layers, devices = path.stem.split("_")[:2]
    return int(layers[1:]), int(devices[1:])


def small(path: Path) -> bool:
    return sizes(path)[0] <= MOST_LAYERS and sizes(path)[1] <= MOST_DEVICES


def measured(path: Path) -> Row:
    """Raises CertificateError when the checker refuses."""
    problem, boxes = load_problem(path), small(path)
    solution, solve_s = timed(lambda: solve(problem, gap=DEFAULT_GAP * (CLOSER if boxes else 1.0)))
    assignment = solution.assignment
    assert assignment is not None, path.stem
    certificate, certify_s = timed(lambda: certify(problem, assignment, DEFAULT_GAP))
    proof, check_s = timed(lambda: check_certificate(problem, certificate))
    size, seconds = "x".join(map(str, sizes(path))), (solve_s, certify_s, check_s)
    row = Row(path.stem, size, boxes, proof.gap, certificate.leaves, proof.listed, len(certificate.dumps()), *seconds)
    print(row, file=sys.stderr, flush=True)
    return row


def timed(run: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    found = run()
    return found, time.process_time() - started


def summary(rows: list[Row]) -> list[dict[str, Any]]:
    """By size: medians, and the largest where it says more."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (not row.boxes, tuple(map(int, row.size.split("x"))))):
        groups.setdefault(row.size, []).append(row)
    return [group_summary(size, group) for size, group in groups.items()]


def group_summary(size: str, group: list[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "size": size,
        "problems": len(group),
        "boxes": group[0].boxes,
        "largest_gap": max(row.gap for row in group),
    }
    for name in ("leaves", "bytes", "solve_s", "certify_s", "check_s"):
        values = [getattr(row, name) for row in group]
        found[name] = {"median": statistics.median(values), "most": max(values)}
    return found


def show(groups: list[dict[str, Any]]) -> None:
    print("| size | by | problems | largest gap | leaves | kB | solve s | certify s | check s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for group in groups:
        times = " | ".join(
            f"{group[name]['median']:.2f} ({group[name]['most']:.2f})" for name in ("solve_s", "certify_s", "check_s")
        )
        size = f"{group['bytes']['median'] / 1000:.1f} ({group['bytes']['most'] / 1000:.1f})"
        by = "boxes" if group["boxes"] else "weak dual"
        leaves = f"{group['leaves']['median']:.0f} ({group['leaves']['most']})"
        print(f"| {group['size']} | {by} | {group['problems']} | {group['largest_gap']:.2g} | {leaves} | {size} | {times} |")


if __name__ == "__main__":
    main()
