"""The server of an export: healthy, asked, blamed when it dies, stopped without a trace. vLLM is a stand-in here."""

import os
import sys
import time
from pathlib import Path

import pytest

from llmpq.backends import vllm_server
from llmpq.backends.vllm_check import VllmCheck, check_server, tolerance_of
from llmpq.backends.vllm_server import VllmServer
from llmpq.errors import BackendError
from llmpq.runtime.launcher import free_port

FAKE = Path(__file__).parent / "fake_vllm.py"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VllmServer:
    """Not started yet; its script leaves the number of the child that outlives a careless stop."""
    monkeypatch.setattr(vllm_server, "POLL_S", 0.02)
    monkeypatch.setattr(vllm_server, "GRACE_S", 0.5)
    launch = tmp_path / "launch.sh"
    launch.write_text(f'sleep 600 &\necho $! > {tmp_path}/child\nexec "$PYTHON" {FAKE} "$@"\n')
    return VllmServer(launch, sys.executable, free_port(), start_limit_s=30)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"


def is_gone(pid: int) -> bool:
    """Whether the process ends; the kernel may take a moment after the signal."""
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def child(server: VllmServer) -> int:
    return int((server.launch.parent / "child").read_text())


def test_a_healthy_server_tells_log_probabilities_and_blocks(server: VllmServer) -> None:
    with server:
        assert server.log_probs([5, 1, 2]) == [-1.0, -2.0]
        assert server.kv_blocks() == 7
        assert is_running(child(server))
    assert is_gone(child(server))


def test_a_server_that_does_not_listen_to_sigterm_is_killed(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPQ_FAKE", "stubborn")
    with server:
        pass
    assert server.wait() < 0 and is_gone(child(server))


def test_a_server_that_dies_is_blamed_by_its_first_error(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPQ_FAKE", "dies")
    with pytest.raises(BackendError, match=r"exit code 3 before it was healthy: ValueError: no kernel for this weight"), server:
        pass
    assert is_gone(child(server))


def test_a_server_that_never_gets_healthy_is_given_up(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPQ_FAKE", "hangs")
    server.start_limit_s = 1.0
    with pytest.raises(BackendError, match="not healthy after 1 s"), server:
        pass
    assert is_gone(child(server))


def test_what_the_server_refuses_is_told(server: VllmServer) -> None:
    with server, pytest.raises(BackendError, match=r"vLLM answered 400 to .*prompt is empty"):
        server.log_probs([0])


def test_a_check_compares_every_token_and_the_blocks(server: VllmServer) -> None:
    with server:
        found = check_server(server, [[9, 1, 2], [9, 3]], [[-1.0, -2.03], [-3.0]], 0.02, kv_blocks=7)
    assert (found.tokens, found.tolerance, found.kv_blocks_found, found.problems) == (3, 0.02, 7, ())
    assert found.mean_difference == pytest.approx(0.01) and found.max_difference == pytest.approx(0.03)


def test_an_engine_may_be_off_by_twice_what_bf16_costs_the_reference() -> None:
    assert tolerance_of([[-1.0, -2.0], [-3.3]], [[-1.0, -2.3], [-3.0]]) == pytest.approx(2 * 0.2)


def test_a_mismatch_is_told_with_its_figures() -> None:
    near = VllmCheck(100, 0.039, 0.3, 0.04, 12, 12)
    assert near.problems == ()
    assert VllmCheck(100, 0.041, 0.3, 0.04, 12, 12).problems == (
        "log-probabilities differ from the dequantized reference by 0.0410 nats on average (at most 0.300, over 100 tokens), "
        "allowed are 0.04",
    )
    assert VllmCheck(100, 0.01, 0.3, 0.04, 12, 13).problems == ("vLLM has 13 KV blocks, 12 were predicted",)
    assert len(VllmCheck(100, float("nan"), 0.3, 0.04, 12, 12).problems) == 1
