"""Seconds of each example, as a process of its own, beside that of importing torch and transformers.

    python benchmarks/examples.py [--rounds 3] [--json benchmarks/results/examples.json]

Writes the table of examples/README.md with `--table`, from the results.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

ROOT = Path(__file__).parent.parent
README = ROOT / "examples" / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "examples.json"
NAMES = ("quickstart", "custom_cluster", "foreign_cluster", "own_module", "own_pass", "encoder", "torchrun_hosts")
IMPORTS = [sys.executable, "-c", "import torch, transformers"]


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each, round by round, so that what else the machine does falls on all of them."""
    commands = {"imports": IMPORTS} | {name: [sys.executable, f"examples/{name}.py"] for name in NAMES}
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(round(seconds(command), 2))
            print(f"{name:<16} {found[name][-1]:6.2f} s", flush=True)
    return found


def write_table(found: dict[str, list[float]]) -> None:
    """Put the medians into the rows of the README."""
    text = README.read_text(encoding="utf-8")
    for name in NAMES:
        told = f"{statistics.median(found[name]):.1f} s ({min(found[name]):.1f}-{max(found[name]):.1f})"
        text = re.sub(rf"(\| \[{name}\.py\].*? \| )[^|]*( \|\n)", rf"\g<1>{told}\g<2>", text)
    told = f"{statistics.median(found['imports']):.1f} s"
    text = re.sub(r"alone takes [\d.]+ s", f"alone takes {told}", text)
    README.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        write_table(json.loads(RESULTS.read_text())["seconds"])
        return
    result = {"machine": machine(), "seconds": measure(options.rounds)}
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
