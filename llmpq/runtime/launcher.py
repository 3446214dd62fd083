"""Launcher: one process per stage on this machine, watched until all have ended."""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO

from llmpq.errors import BackendError, PeerError

_GRACE_S = 5.0  # assumed: what an interrupted stage may take to leave, and a cause to show up behind its consequences
_INTERRUPTED = 130
LAUNCHER = "LLMPQ_LAUNCHER"  # environment variable: the process with which another ends
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class _Exit:
    """How a stage ended; `code` negative: by that signal, None: not at all, while others waited for it in vain."""

    stage: int
    code: int | None

    @property
    def is_consequence(self) -> bool:
        return self.code == PeerError.exit_code

    def told(self, name_of: Callable[[int], str]) -> str:
        """What happened, in words."""
        name = name_of(self.stage)
        if self.code is None:
            return f"{name} does not answer"
        if self.is_consequence:
            return f"{name} lost another stage"
        if self.code < 0:
            return f"{name} was killed by {signal.Signals(-self.code).name}"
        return f"{name} ended with exit code {self.code}"


def launch(command: Sequence[str], num_stages: int, name_of: Callable[[int], str] = "stage {}".format) -> int:
    """Run `command` once per stage with torchrun's environment; returns the exit code: 0 when every stage ended with 0.

    Stage 0's stdout and stderr pass through; lines of the others go to stderr, prefixed by `name_of(stage)`. When a stage
    fails, one line on stderr names it and all are killed; its exit code is returned, 1 for a signal. SIGINT and SIGTERM are
    handed on to all stages; the result is then 130. No process is left, whatever happens.
    """
    processes = _start(command, num_stages)
    readers = [
        threading.Thread(target=_prefix_lines, args=(p.stdout, name_of(s)), daemon=True) for s, p in enumerate(processes) if s
    ]
    exits: queue.Queue[_Exit] = queue.Queue()
    try:
        with _forwarded_signals(processes) as interrupted:
            for reader in readers:
                reader.start()
            for stage, process in enumerate(processes):
                threading.Thread(target=lambda s=stage, p=process: exits.put(_Exit(s, p.wait())), daemon=True).start()
            failure = _blamed(exits, num_stages, interrupted)
    finally:
        _kill(processes)
    for reader in readers:
        reader.join(_GRACE_S)  # the last words of the stages come before ours
    if interrupted.is_set():
        return _INTERRUPTED
    if failure is None:
        return 0
    print(f"error: {failure.told(name_of)}; all stages were stopped", file=sys.stderr, flush=True)
    return failure.code if failure.code is not None and failure.code > 0 and not failure.is_consequence else 1


def end_with_launcher() -> None:
    """In a stage's process: be killed when the launcher dies, even by SIGKILL (Linux; elsewhere a lost neighbour ends it)."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(launcher), 0)
    except ProcessLookupError as error:
        raise BackendError(f"the launcher of this stage, process {launcher}, is gone") from error


def _blamed(exits: "queue.Queue[_Exit]", num_stages: int, interrupted: threading.Event) -> _Exit | None:
    """Wait until all have ended well, or for the failure to blame: none that is the consequence of another, if there is one."""
    silent = set(range(num_stages))
    consequence = None
    while silent:
        try:
            ended = _next_exit(exits, _GRACE_S if consequence or interrupted.is_set() else None, interrupted)
        except queue.Empty:
            return _Exit(min(silent), None) if consequence else None
        silent.remove(ended.stage)
        if ended.code and not ended.is_consequence and not interrupted.is_set():
            return ended
        consequence = consequence or (ended if ended.code else None)
    return consequence


def _next_exit(exits: "queue.Queue[_Exit]", timeout_s: float | None, interrupted: threading.Event) -> _Exit:
    """The next exit; without a time-out as long as nobody interrupts, who then gives the stages their grace."""
    while timeout_s is None:
        with suppress(queue.Empty):
            return exits.get(timeout=0.5)
        timeout_s = _GRACE_S if interrupted.is_set() else None
    return exits.get(timeout=timeout_s)


def _start(command: Sequence[str], num_stages: int) -> list[subprocess.Popen[str]]:
    port = free_port()
    processes: list[subprocess.Popen[str]] = []
    try:
        for stage in range(num_stages):
            out, err = (subprocess.PIPE, subprocess.STDOUT) if stage else (None, None)
            environment = _environment(stage, num_stages, port)
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=err, text=True, errors="replace", start_new_session=True
            )
            processes.append(process)
    except BaseException:
        _kill(processes)
        raise
    return processes


def _environment(stage: int, num_stages: int, port: int) -> dict[str, str]:
    ranks = {"RANK": stage, "LOCAL_RANK": stage, "WORLD_SIZE": num_stages, "LOCAL_WORLD_SIZE": num_stages}
    defaults = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if sys.platform == "linux":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # all stages are on this machine, whatever its host name resolves to
    given = {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return defaults | dict(os.environ) | given | {LAUNCHER: str(os.getpid())}


def free_port() -> int:
    """A TCP port of this machine that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _prefix_lines(lines: IO[str], name: str) -> None:
    for line in lines:
        sys.stderr.write(f"[{name}] {line.rstrip()}\n")
        sys.stderr.flush()


@contextmanager
def _forwarded_signals(processes: Sequence[subprocess.Popen[str]]) -> Iterator[threading.Event]:
    """Hand SIGINT and SIGTERM on to the stages while inside; the event is set once one came. Signals need the main thread."""
    interrupted = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        for process in processes:
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill every stage with what it started (each leads a session of its own) and reap it."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
