"""Router: one address before the servers of several replicas, requests shared out by weight, answers streamed."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from llmpq.errors import BackendError

PIECE = 1 << 16  # bytes of an answer that are handed on at once, fewer when no more are there
ANSWER_LIMIT_S = 3600.0
OF_ONE_CONNECTION = frozenset(("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"))


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server of one replica, and its share of the requests relative to the others'."""

    host: str
    port: int
    weight: float


@dataclass(slots=True)
class Turns:
    """Whose turn it is: each upstream by its weight, spread evenly (smooth weighted round robin, as nginx does)."""

    weights: Sequence[float]
    _owed: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> int:
        with self._lock:
            self._owed = self._owed or [0.0 for _ in self.weights]
            self._owed = [owed + weight for owed, weight in zip(self._owed, self.weights)]
            chosen = max(range(len(self._owed)), key=lambda place: self._owed[place])
            self._owed[chosen] -= sum(self.weights)
            return chosen


@dataclass
class Router:
    """A context manager: inside, it answers at `url`. A server that cannot be reached is passed over; 502 when none can.

    Raises BackendError when the address is taken.
    """

    upstreams: tuple[Upstream, ...]
    port: int
    host: str = "127.0.0.1"
    _server: "_Server | None" = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._server = _Server((self.host, self.port), self.upstreams)
        except OSError as error:
            raise BackendError(f"{self.host}:{self.port} cannot be served: {error.strerror}; choose another --port") from None
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Knows whose turn it is."""

    def __init__(self, address: tuple[str, int], upstreams: tuple[Upstream, ...]) -> None:
        self._upstreams, self._turns = upstreams, Turns(tuple(one.weight for one in upstreams))
        super().__init__(address, _Handler)

    def order(self) -> tuple[Upstream, ...]:
        """The one whose turn it is, then the others."""
        first = self._turns.next()
        return (*self._upstreams[first:], *self._upstreams[:first])


class _Handler(BaseHTTPRequestHandler):
    """Hands a request on to the first of the server's `order` that takes it, and its answer back piece by piece."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for upstream in self.server.order():
            connection = HTTPConnection(upstream.host, upstream.port, timeout=ANSWER_LIMIT_S)
            try:
                connection.connect()
            except OSError:
                continue
            try:
                self._forward(connection, body)
            finally:
                connection.close()
            return
        self.send_error(502, "no replica can be reached")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = handle_request

    def _forward(self, connection: HTTPConnection, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_ONE_CONNECTION}
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
        except (HTTPException, OSError) as error:
            self.send_error(502, f"the replica did not answer: {error}")
            return
        self._hand_back(answer)

    def _hand_back(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in OF_ONE_CONNECTION:
                self.send_header(name, value)
        chunked = answer.getheader("Content-Length") is None and self.command != "HEAD" and answer.status not in (204, 304)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := answer.read1(PIECE):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            self.wfile.flush()
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        """Servers log their requests themselves."""
