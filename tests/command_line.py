"""The command line as tests call it: in this process, or as a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "examples" / "clusters" / "two-unlike-cpus.yaml"
WORKLOAD = ("--batch-size", "8", "--prompt-len", "64", "--gen-len", "32")
PLANNED = ("--cluster", str(CLUSTER), *WORKLOAD, "--indicator", "prior", "--quantizer", "rtn")
PROCESS_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code and what was written."""

    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    """One thread a process, as the launcher has it, so that all compute the same bits."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def llmpq(*arguments: object, cwd: Path | None = None) -> Outcome:
    """`llmpq ARGUMENTS` as a process."""
    return process(sys.executable, "-m", "llmpq", *arguments, cwd=cwd)


def process(*command: object, cwd: Path | None = None) -> Outcome:
    words = list(map(str, command))
    done = subprocess.run(
        words, env=environment(), cwd=cwd, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
