"""VllmProbe: a process of vLLM that is asked for steps and says what their parts took."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from llmpq.errors import BackendError
from llmpq.export.vllm import PLUGIN_FILE
from llmpq.profiling.vllm_model import Arrangement

STEPS_FILE = "llmpq_vllm_steps.py"
LOG_FILE = "vllm.log"
LEAVES_S = 30.0  # what vLLM may take to leave


@dataclass(frozen=True, slots=True)
class Ready:
    """What a process that has loaded its model says: versions and threads that times depend on, tokens that its cache holds."""

    versions: tuple[tuple[str, str], ...]
    threads: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step. layers_s, attention_s: (kind, precision) -> of one layer, and of its attention, on average."""

    layers_s: Mapping[tuple[int, str], float]
    attention_s: Mapping[tuple[int, str], float]
    first_s: float
    last_s: float
    rank_s: float
    message_s: float
    engine_s: float
    total_s: float
    busy: float


class VllmProbe:
    """A context manager: inside, `step_times` runs a step. folder: scratch space of its own; python: has vLLM.

    Raises BackendError when vLLM dies.
    """

    def __init__(self, arrangement: Arrangement, setup: Mapping[str, Any], folder: Path, python: str) -> None:
        self._cells, self._setup, self._folder, self._python = arrangement.cells(), setup, folder, python
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        backends = Path(__file__).parents[1] / "backends"
        for source, name in (("vllm_steps.py", STEPS_FILE), ("vllm_plugin.py", PLUGIN_FILE)):
            (self._folder / name).write_text((backends / source).read_text(encoding="utf-8"), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(self._folder)}
        with (self._folder / LOG_FILE).open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [self._python, str(self._folder / STEPS_FILE), json.dumps(self._setup)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            said = self._answer()
        except BaseException:
            self._stop()
            raise
        self.ready = Ready(tuple(said["versions"].items()), said["threads"], said["kv_tokens"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def step_times(self, **step: int) -> StepTimes:
        """A step of `rows` x `tokens` at `context`, `decoding` sequences beside at `decode_context`."""
        process = self._process
        assert process is not None and process.stdin is not None, "inside the context alone"
        try:
            process.stdin.write(json.dumps(step) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._read(self._answer())

    def _read(self, said: dict[str, Any]) -> StepTimes:
        def by_cell(seconds: list[float]) -> dict[tuple[int, str], float]:
            return {cell: fmean(seconds[layer] for layer in layers) for cell, layers in self._cells.items()}

        return StepTimes(
            layers_s=by_cell(said["layers"]),
            attention_s=by_cell(said["attention"]),
            first_s=said["first"],
            last_s=said["last"],
            rank_s=said["rank"],
            message_s=said["message"],
            engine_s=said["engine"],
            total_s=said["total"],
            busy=said["busy"],
        )

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        said: dict[str, Any] = json.loads(line)
        return said

    def _died(self) -> BackendError:
        assert self._process is not None
        code = self._process.wait()
        lines = (self._folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line for line in lines if "Error: " in line or "Exception: " in line]
        return BackendError(
            f"vLLM ended with exit code {code} while it was measured", ((named or lines or ["it said nothing"])[-1],)
        )

    def _stop(self) -> None:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
            process.wait(LEAVES_S)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill()
        process.stdout.close()
        process.wait()
