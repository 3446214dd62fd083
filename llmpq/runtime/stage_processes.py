"""StageProcesses: a process per stage, forked from this one, watched, asked and stopped."""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch._C._distributed_c10d import Store, TCPStore

from llmpq.errors import BackendError, InputError, PeerError, StageLostError
from llmpq.runtime.heartbeat import Lost, Patience, Signs, first_line, interval_s
from llmpq.runtime.process_group import Place, in_attempt

Event = dict[str, Any]  # what a stage tells, one JSON object
Serve = Callable[[Place, "StageConnection"], None]
_LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CAUSE_S = 0.5  # assumed: how long after its consequences the end of a process shows at the latest


class StageConnection:
    """A stage's line to the process that started it: requests in, events out."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def next_request(self) -> str:
        return self._connection.recv_bytes().decode()

    def tell(self, **event: Any) -> None:
        self._connection.send_bytes(json.dumps(event).encode())


class StageProcesses:
    """`serve(place, connection)` runs in a process per stage; `name_of(rank)` names them in errors.

    Forked, so that they need not import anything again; this process must not have used an accelerator. It keeps the store
    through which they meet, watches for their ends and signs of life, and kills them all when one is lost. None outlives it.
    """

    def __init__(self, serve: Serve, num_stages: int, name_of: Callable[[int], str], patience: Patience) -> None:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise BackendError(
                "this process has used an accelerator, which stages forked from it cannot; start them with torchrun"
            )
        self._name_of, self._patience = name_of, patience
        self._events: deque[Event] = deque()
        self._store: Store | None = None
        self._ends: list[Connection] = []
        self.processes: list[BaseProcess] = []
        try:
            self._start(serve, num_stages)
        except BaseException:
            self.kill()
            raise

    def ask(self, rank: int, request: str) -> None:
        with suppress(BrokenPipeError):  # its end is an event
            self._ends[rank].send_bytes(request.encode())

    def next_event(self) -> Event:
        """The next that a stage tells. Raises StageLostError, or what a stage says of its files, after killing all."""
        while True:
            ready = wait([*self._ends, *(process.sentinel for process in self.processes)], interval_s(self._patience))
            told = [self._hear(rank, end) for rank, end in enumerate(self._ends) if end in ready]
            lost = next((item for item in told if isinstance(item, Lost)), None) or self._watch()
            if lost is not None:
                raise self._given_up(lost)
            if told:
                self._events.extend(item for item in told if not isinstance(item, Lost))
            if self._events:
                return self._events.popleft()

    def close(self, timeout_s: float) -> None:
        """Let the stages leave, kill those that do not."""
        self.ask(0, "")
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """No process is left, not even a stopped one."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for end in self._ends:
            end.close()
        self._ends = []
        self._store = None  # at once: a process forked later must not inherit its threads

    def _start(self, serve: Serve, num_stages: int) -> None:
        context = multiprocessing.get_context("fork")
        sys.stdout.flush()
        sys.stderr.flush()
        for rank in range(num_stages):
            here, there = context.Pipe()
            process = context.Process(target=_stage, args=(serve, rank, num_stages, there, os.getpid()), name=self._name_of(rank))
            process.start()
            there.close()
            self._ends.append(here)
            self.processes.append(process)
        # only now, so that no process inherits its sockets and threads
        server = TCPStore(_LOOPBACK, 0, None, True, wait_for_workers=False)
        self._store = in_attempt(server, 0)
        self._signs = Signs(range(num_stages), self._patience)
        self._heard_at = time.monotonic()
        for rank in range(num_stages):
            self.ask(rank, str(server.port))

    def _hear(self, rank: int, end: Connection) -> "Event | Lost":
        """What a stage tells; the stage that is lost, where it tells of one or tells nothing any more."""
        try:
            event: Event = json.loads(end.recv_bytes())
        except (EOFError, OSError):
            return Lost(rank, "closed its connection")
        if "input_error" in event:
            self.kill()
            raise InputError(event["input_error"])
        if "lost" not in event:
            return event
        suspect, reason = event["lost"]
        return Lost(rank if suspect is None else suspect, reason)

    def _watch(self) -> Lost | None:
        """Look for stages that ended, and at the signs of life of the others. One that lost another tells so itself."""
        for rank, process in enumerate(self.processes):
            if process.exitcode not in (None, PeerError.exit_code):
                return Lost(rank, "ended")
        if time.monotonic() - self._heard_at < interval_s(self._patience):
            return None
        self._heard_at = time.monotonic()
        return None if self._store is None else self._signs.hear(self._store)

    def _given_up(self, lost: Lost) -> StageLostError:
        """Stop all; a process that ended by itself is to blame for what others tell of it."""
        assert lost.rank is not None
        process = self.processes[lost.rank]
        process.join(_CAUSE_S)
        code, reason = process.exitcode, lost.reason
        if code is not None and code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        elif code and reason == "ended":
            reason = f"ended with exit code {code}"
        self.kill()
        error = StageLostError(f"lost {self._name_of(lost.rank)}: {reason}; all stages were stopped")
        error.rank, error.reason = lost.rank, reason
        return error


def _stage(serve: Serve, rank: int, num_stages: int, end: Connection, parent: int) -> None:
    """A stage's process: serves until it is told to leave, or fails."""
    os.setsid()  # Ctrl-C is for the parent, which stops us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # all stages are on this machine, whatever its host name resolves to
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    connection, code = StageConnection(end), 0
    try:
        if os.getppid() == parent:
            port = int(connection.next_request())
            serve(Place(rank, num_stages, _LOOPBACK, port, launcher_keeps_store=True), connection)
    except PeerError as error:
        code = error.exit_code
        connection.tell(lost=[error.rank, error.reason])
    except InputError as error:
        code = error.exit_code
        connection.tell(input_error=str(error))
    except BaseException as error:
        code = 1
        connection.tell(lost=[None, first_line(error)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what the parent wants done at its own exit is not ours to do
