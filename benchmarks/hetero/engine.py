"""Engine: vLLM in its own interpreter, started once and forked per configuration, asked by JSON lines."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
PYTHON = HERE.parent.parent / ".engines" / "bin" / "python"
PLUGIN = HERE.parent.parent / "backends" / "vllm_plugin.py"
PLUGIN_NAME = "llmpq_vllm_plugin.py"


class EngineError(Exception):
    """vLLM did not do what was asked; the message is its own."""


@dataclass
class Host:
    """The warm process; `start`, then `run` any number of times, then `stop`. Raises EngineError with vLLM's words."""

    process: "subprocess.Popen[str]"

    def start(self, engines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One engine each, loaded; ranks (with process ids), kv_blocks, load_s of each."""
        found: list[dict[str, Any]] = self._ask({"start": list(engines)})["ready"]
        return found

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A job for each engine, all begun together."""
        found: list[dict[str, Any]] = self._ask({"run": list(jobs)})["results"]
        return found

    def stop(self) -> None:
        self._ask({"stop": True})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EngineError(f"the engine host ended with exit code {self.process.wait()}; see its log")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer


@contextmanager
def engine_host(log: Path, python: Path = PYTHON) -> Iterator[Host]:
    """A host that is warm; on leaving, however that happens, all of its processes are gone. vLLM's words go to `log`."""
    with TemporaryDirectory(prefix="llmpq-hetero-") as folder, log.open("a") as said:
        shutil.copyfile(PLUGIN, Path(folder) / PLUGIN_NAME)
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{HERE}"}
        environment.pop("TQDM_DISABLE", None)  # vLLM 0.32 divides by the time that a disabled progress bar does not take
        process = subprocess.Popen(
            [str(python), str(HERE / "engine_host.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,
        )
        host = Host(process)
        try:
            host.answer()
            yield host
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask the host to leave with all that it started, then kill its session."""
    members = session(process.pid)
    if process.poll() is None:
        with suppress(OSError):
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    for pid in {*members, *session(process.pid)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def session(leader: int) -> tuple[int, ...]:
    """The processes of the leader's session, whatever group they are in."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return tuple(found)
