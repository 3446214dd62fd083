"""ReplicaServers: vLLM servers of several exports, started together, behind one router."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from llmpq.backends.router import Router, Upstream
from llmpq.backends.vllm_server import VllmServer

POLL_S = 0.5


@dataclass
class ReplicaServers:
    """A context manager: inside, the router answers at `url`. `weights`: shares of the requests, one for each server.

    Raises BackendError when the address is taken, and when one of the servers does not come up; the others are stopped then.
    """

    servers: Sequence[VllmServer]
    weights: Sequence[float]
    port: int
    host: str = "127.0.0.1"
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        upstreams = tuple(Upstream(one.host, one.port, weight) for one, weight in zip(self.servers, self.weights, strict=True))
        try:
            # first: an address that is taken is known before minutes of loading; 502 until a server is up
            self._stack.enter_context(Router(upstreams, self.port, self.host))
            for server in self.servers:
                self._stack.callback(server.stop)
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        """All at once; when one fails the others are stopped, which ends their own waiting."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            starts = [pool.submit(server.__enter__) for server in self.servers]
            try:
                for start in as_completed(starts):
                    start.result()
            except BaseException:
                self._stack.close()
                raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def wait(self) -> tuple[int, int]:
        """Until one of the servers ends by itself: which, and its exit code."""
        while True:
            for number, server in enumerate(self.servers):
                code = server.ended
                if code is not None:
                    return number, code
            time.sleep(POLL_S)
