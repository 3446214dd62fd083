"""Enumeration: the exact solver against every assignment of many small random problems.

python benchmarks/enumeration.py [--count 10000]

Problems are those of tests/random_problems.py: 2-5 layers, 1-3 devices, 1-3 options, every decode model, overlap, unsupported
cells, budgets, theta, devices that may or must be used.
"""

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import machine

from llmpq.solver.solve import solve

ROOT = Path(__file__).parent
RESULT = ROOT / "results" / "enumeration.json"
GAP = 1e-9
TOLERANCE = 1e-7  # relative, between the solver's objective and the least enumerated one
sys.path.insert(0, str(ROOT.parent))

from tests.random_problems import enumerate_optimum, random_problem  # noqa: E402


@dataclass(frozen=True, slots=True)
class Compared:
    """One problem. difference: relative, of the solver's objective to the optimum; None where both say infeasible."""

    seed: int
    agrees: bool
    difference: float | None
    solver_s: float


def compare(seed: int) -> Compared:
    problem = random_problem(seed)
    optimum = enumerate_optimum(problem)
    started = time.process_time()
    solution = solve(problem, gap=GAP)
    seconds = time.process_time() - started
    found = None if solution.assignment is None else solution.objective
    if optimum is None or found is None:
        return Compared(seed, optimum is None and found is None and solution.proven, None, seconds)
    difference = abs(found - optimum) / max(abs(optimum), 1e-12)
    return Compared(seed, difference <= TOLERANCE and solution.proven, difference, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    with multiprocessing.Pool() as pool:
        rows = pool.map(compare, range(asked.count), chunksize=50)
    wrong = [row for row in rows if not row.agrees]
    differences = [row.difference for row in rows if row.difference is not None]
    told = {
        "problems": len(rows),
        "equal": len(rows) - len(wrong),
        "infeasible": sum(row.difference is None and row.agrees for row in rows),
        "largest_difference": max(differences, default=0.0),
        "solver_cpu_s": round(sum(row.solver_s for row in rows), 2),
    }
    print(
        f"{told['equal']} of {told['problems']} problems as enumeration says, {told['infeasible']} of them infeasible; ", end=""
    )
    print(f"largest relative difference {told['largest_difference']:.1e}; solver {told['solver_cpu_s']:.1f} s of CPU in all")
    asked.output.write_text(json.dumps({"machine": machine(), **told, "wrong": [asdict(row) for row in wrong]}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
