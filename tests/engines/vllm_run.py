"""VllmRun: what vLLM, in the engine environment, computed for a checkpoint and said about it."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmpq.export.vllm import PLUGIN_FILE

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".engines" / "bin" / "python"
WARNING = re.compile(r"(?:WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d (\[[^]]*\] .*)")


@dataclass(frozen=True, slots=True)
class VllmRun:
    """log_probs: [tokens], fp32, every window's one after the other; linears: per stage, name -> (scheme, kernel)."""

    log_probs: Tensor
    linears: tuple[dict[str, tuple[str, str]], ...]
    warnings: frozenset[str]
    description: str


def execute(
    models: Sequence[Path], windows: Path, result: Path, partition: str | None = None, *, stock: bool = False
) -> tuple[int, str]:
    """Exit code and everything that vLLM printed while it ran the models on the token sequences in `windows`."""
    command = [str(PYTHON), "-m", "tests.engines.vllm_log_probs", str(windows), str(result), *map(str, models)]
    command += ([] if partition is None else ["--partition", partition]) + (["--stock"] if stock else [])
    shutil.copyfile(ROOT / "backends" / "vllm_plugin.py", result.parent / PLUGIN_FILE)
    environment = {**os.environ, "PYTHONPATH": str(result.parent)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False
    )
    return done.returncode, done.stdout


def run_vllm(models: Sequence[Path], windows: Path, result: Path, partition: str | None = None) -> list[VllmRun]:
    """A run per model; what was printed counts as said of each."""
    code, printed = execute(models, windows, result, partition)
    assert code == 0, f"vLLM did not run {', '.join(map(str, models))}:\n{printed[-6000:]}"
    return [_run(value, frozenset(WARNING.findall(printed))) for value in json.loads(result.read_text())]


def _run(value: dict[str, Any], warnings: frozenset[str]) -> VllmRun:
    linears = tuple({name: (scheme, kernel) for name, (scheme, kernel) in stage.items()} for stage in value["linears"])
    log_probs = torch.tensor([number for window in value["log_probs"] for number in window])
    return VllmRun(log_probs, linears, warnings, _description(value))


def _description(value: dict[str, Any]) -> str:
    """Versions, instruction set, seconds and kernels, for people to read."""
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    kernels = Counter(kernel for stage in value["linears"] for _, kernel in stage.values())
    counts = ", ".join(f"{count} linears by {kernel}" for kernel, count in sorted(kernels.items()))
    stages = len(value["linears"])
    processes = f"{stages} {'stage' if stages == 1 else 'stages'}"
    return f"{versions}; {value['instruction_set']}; {processes}: {counts}; load {value['load_s']} s, run {value['run_s']} s"
