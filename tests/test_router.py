"""The router before several replicas: shares by weight, answers as they come, servers that cannot be reached; and their start."""

import json
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.backends import vllm_environment, vllm_server
from llmpq.backends.replica_servers import ReplicaServers
from llmpq.backends.router import Router, Turns, Upstream
from llmpq.backends.vllm_server import VllmServer
from llmpq.commands import serve
from llmpq.errors import BackendError, InputError
from llmpq.export.vllm_settings import vllm_settings
from llmpq.plan import Replica as Replicated
from llmpq.runtime.launcher import free_port
from llmpq.serialize import dumps
from tests.export_plans import graph_of, on

FAKE = Path(__file__).parent / "fake_vllm.py"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_every_round_gives_each_upstream_its_weight(weights: list[int]) -> None:
    turns = Turns(weights)
    for _ in range(2):
        assert Counter(turns.next() for _ in range(sum(weights))) == dict(enumerate(weights))


def test_turns_are_spread_evenly() -> None:
    turns = Turns((3, 1))
    assert [turns.next() for _ in range(8)] == [0, 0, 1, 0, 0, 0, 1, 0]


class Replica(BaseHTTPRequestHandler):
    """Answers with its own port; /stream in two pieces, the second once `second` is set."""

    second = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/stream":
            self.end_headers()
            self.wfile.write(b"first")
            self.wfile.flush()
            self.second.wait(10)
            self.wfile.write(b" second")
            return
        self.reply(str(self.connection.getsockname()[1]))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(418 if body == b"tea" else 200)
        self.reply(f"{self.path} {body.decode()}")

    def reply(self, text: str) -> None:
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Replica) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield servers[0].server_port, servers[1].server_port
    for server in servers:
        server.shutdown()
        server.server_close()


def get(url: str, body: bytes | None = None) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
        return str(answer.read().decode())


def upstreams(ports: tuple[int, ...], *weights: float) -> tuple[Upstream, ...]:
    return tuple(Upstream("127.0.0.1", port, weight) for port, weight in zip(ports, weights))


def test_requests_are_shared_out_by_weight(ports: tuple[int, int]) -> None:
    with Router(upstreams(ports, 3, 1), 0) as router:
        assert Counter(get(router.url) for _ in range(8)) == {str(ports[0]): 6, str(ports[1]): 2}


def test_bodies_paths_and_codes_pass_through(ports: tuple[int, int]) -> None:
    with Router(upstreams(ports, 1, 1), 0) as router:
        assert get(f"{router.url}/v1/completions?x=1", b"hello") == "/v1/completions?x=1 hello"
        with pytest.raises(urllib.error.HTTPError, match="418"):
            get(router.url, b"tea")


def test_pieces_of_an_answer_are_handed_on_as_they_come(ports: tuple[int, int]) -> None:
    Replica.second.clear()
    with Router(upstreams(ports, 1, 1), 0) as router, urllib.request.urlopen(f"{router.url}/stream", timeout=10) as answer:
        assert answer.read1(100) == b"first"
        Replica.second.set()
        assert answer.read() == b" second"


def test_a_server_that_cannot_be_reached_is_passed_over(ports: tuple[int, int]) -> None:
    with Router(upstreams((free_port(), ports[1]), 5, 1), 0) as router:
        assert {get(router.url) for _ in range(6)} == {str(ports[1])}


def test_without_any_server_the_answer_is_502() -> None:
    with Router(upstreams((free_port(), free_port()), 1, 1), 0) as router, pytest.raises(urllib.error.HTTPError, match="502"):
        get(router.url)


def server_in(folder: Path) -> VllmServer:
    folder.mkdir()
    launch = folder / "launch.sh"
    launch.write_text(f'exec "$PYTHON" {FAKE} "$@"\n')
    return VllmServer(launch, sys.executable, free_port(), start_limit_s=30)


def test_all_servers_start_answer_behind_one_address_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "POLL_S", 0.02)
    servers = [server_in(tmp_path / name) for name in "ab"]
    with ReplicaServers(servers, (2, 1), free_port()) as group:
        assert json.loads(get(f"{group.url}/v1/models"))["data"] == [{"id": "tiny"}]
        assert [server.ended for server in servers] == [None, None]
    assert None not in [server.ended for server in servers]


def test_one_server_that_dies_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "POLL_S", 0.02)
    servers = [server_in(tmp_path / name) for name in "ab"]
    servers[1].launch.write_text("echo ValueError: no room; exit 3\n")
    with pytest.raises(BackendError, match="exit code 3"), ReplicaServers(servers, (2, 1), free_port()):
        pass
    assert None not in [server.ended for server in servers]


def test_a_server_that_is_stopped_while_another_thread_starts_it_is_not_left_behind(tmp_path: Path) -> None:
    server = server_in(tmp_path / "a")
    server.stop()  # as when another has died before this one's thread got that far
    with pytest.raises(BackendError, match="was stopped before it had started"), server:
        pass
    assert server.ended is not None


def test_an_address_that_is_taken_is_told_before_any_server_starts(tmp_path: Path, ports: tuple[int, int]) -> None:
    servers = [server_in(tmp_path / name) for name in "ab"]
    for server in servers:
        server.launch.write_text(f"touch {tmp_path}/started\n")
    told = rf"127\.0\.0\.1:{ports[0]} cannot be served: Address already in use; choose another --port"
    with pytest.raises(BackendError, match=told), ReplicaServers(servers, (2, 1), ports[0]):
        pass
    assert not (tmp_path / "started").exists()


def test_the_first_server_that_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "POLL_S", 0.02)
    servers = [server_in(tmp_path / name) for name in "ab"]
    with ReplicaServers(servers, (2, 1), free_port()) as group:
        servers[1].stop()
        number, code = group.wait()
        assert (number, code) == (1, servers[1].ended) and code != 0


def folder_of_replicas(out: Path, *devices: str) -> Path:
    """Exports in place of compiled replicas, each a server of the stand-in; the second ends after two seconds."""
    plans = [on("2xCPU,1xCPU", (device, "16 16"), dtype="bfloat16") for device in devices]
    made = [Replicated(1 / len(plans), plan.workload, plan.prediction, plan.quality, 1.0) for plan in plans]
    pipelines = tuple(replace(plan.pipeline, replica=one) for plan, one in zip(plans, made))
    out.mkdir()
    (out / "plan.json").write_text(dumps(replace(plans[0], pipelines=pipelines)))
    for number, plan in enumerate(plans):
        folder = out / f"replica-{number}"
        folder.mkdir()
        (folder / "vllm.json").write_text(dumps(vllm_settings(plan, graph_of(plan))))
        (folder / "launch.sh").write_text(f'exec {"timeout 2 " if number else ""}"$PYTHON" {FAKE} "$@"\n')
    return out


def test_serving_a_folder_of_replicas_starts_all_until_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_server, "POLL_S", 0.02)
    monkeypatch.setattr(vllm_environment, "require_vllm", lambda python, wanted: wanted)
    out, port = folder_of_replicas(tmp_path / "out", "CPU:0", "CPU:1"), free_port()
    with pytest.raises(BackendError, match="the vLLM of replica-1 ended by itself with exit code 124"):
        serve._serve_replicas(out, (), sys.executable, port, "127.0.0.1", None)
    told = capsys.readouterr().err
    assert f"at http://127.0.0.1:{port}/v1 (50 % at http://127.0.0.1:{port + 1}, 50 % at http://127.0.0.1:{port + 2})" in told


def test_replicas_of_several_hosts_are_started_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_environment, "require_vllm", lambda python, wanted: wanted)
    out = folder_of_replicas(tmp_path / "out", "CPU:0", "CPU:2")
    with pytest.raises(InputError, match="its replicas are on hosts host0, host1; `llmpq export --to vllm` writes"):
        serve._serve_replicas(out, (), sys.executable, free_port(), "127.0.0.1", None)
