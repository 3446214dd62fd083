"""VllmServer: vLLM's OpenAI-compatible server of an export: started, watched until healthy, asked, stopped."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmpq.errors import BackendError

START_LIMIT_S = 1800.0  # assumed: large models load for minutes
REQUEST_LIMIT_S = 600.0
POLL_S = 0.5
GRACE_S = 30.0  # what vLLM may take to leave; its processes are killed after that
LAST_LINES = 30
CAUSE = re.compile(r"(?:Error|Exception): \S")
BLOCKS = re.compile(r'^vllm:cache_config_info\{.*num_gpu_blocks="(\d+)"', re.MULTILINE)


@dataclass
class VllmServer:
    """A context manager: inside, the server answers at `url`. `launch` is the export's script, `python` has vLLM.

    Output of vLLM goes line by line to `log`. Raises BackendError when vLLM dies or does not become healthy in time.
    """

    launch: Path
    python: str
    port: int
    host: str = "127.0.0.1"
    extra: Sequence[str] = ()
    log: Callable[[str], None] = lambda line: None
    start_limit_s: float = START_LIMIT_S
    _process: subprocess.Popen[str] | None = None
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    _cause: str | None = None
    _is_stopped: bool = False

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def command(self) -> list[str]:
        return ["bash", str(self.launch), "--host", self.host, "--port", str(self.port), *self.extra]

    def __enter__(self) -> Self:
        environment = os.environ | {"PYTHON": self.python, "PYTHONUNBUFFERED": "1"}
        environment.pop("TQDM_DISABLE", None)  # vLLM 0.32 divides by the time that a disabled progress bar does not take
        self._process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        try:
            if self._is_stopped:  # by another thread, before there was a process to stop
                raise BackendError("vLLM was stopped before it had started")
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait(self) -> int:
        """Until vLLM ends by itself; returns its exit code."""
        assert self._process is not None
        return self._process.wait()

    @property
    def ended(self) -> int | None:
        """The exit code of a server that has ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    def stop(self) -> None:
        """Ask vLLM to leave, then kill what is left of its session. It does not start any more."""
        self._is_stopped = True
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log_probs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities (nats) of tokens 1, 2, … of the sequence given those before them."""
        steps = self.complete({"prompt": list(token_ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0})[
            "prompt_logprobs"
        ]
        return [float(step[str(token)]["logprob"]) for token, step in zip(token_ids[1:], steps[1:], strict=True)]

    def kv_blocks(self) -> int:
        """The number of KV blocks that every rank got. Raises BackendError when the server does not tell."""
        told = BLOCKS.search(self._get("/metrics"))
        if told is None:
            raise BackendError(
                f"{self.url}/metrics does not tell the number of KV blocks; is this vLLM the version of vllm.json?"
            )
        return int(told[1])

    def complete(self, request: dict[str, Any]) -> Any:
        """The only choice of /v1/completions for the fields of a request; "model" is filled in."""
        return self._post("/v1/completions", request)["choices"][0]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        models = json.loads(self._get("/v1/models"))["data"]
        data = json.dumps({"model": models[0]["id"], **body}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        return json.loads(self._read_url(request, REQUEST_LIMIT_S))

    def _get(self, path: str, timeout_s: float = REQUEST_LIMIT_S) -> str:
        return self._read_url(urllib.request.Request(self.url + path), timeout_s)

    def _read_url(self, request: urllib.request.Request, timeout_s: float) -> str:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                text: str = answer.read().decode()
                return text
        except urllib.error.HTTPError as error:
            raise BackendError(f"vLLM answered {error.code} to {request.full_url}: {error.read().decode()[:500]}") from error

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.start_limit_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BackendError(
                    f"vLLM ended with exit code {self._process.returncode} before it was healthy", (self._blame(),)
                )
            with suppress(OSError, BackendError):
                self._get("/health", timeout_s=5.0)
                return
            time.sleep(POLL_S)
        raise BackendError(f"vLLM was not healthy after {self.start_limit_s:.0f} s; its last words", (self._blame(),))

    def _blame(self) -> str:
        """The first line that names an error, else the last line."""
        return self._cause or (self._lines[-1] if self._lines else "it said nothing")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip()
            self._lines.append(text)
            if self._cause is None and CAUSE.search(text):
                self._cause = text
            self.log(text)
