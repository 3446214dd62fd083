"""The distributed backend: two real processes over gloo, equal to one; and a stage that dies."""

import json
import sys
from pathlib import Path

import pytest

from llmpq.backends.distributed import DistributedBackend
from llmpq.backends.local import LocalBackend
from llmpq.errors import BackendError
from llmpq.runtime.launcher import free_port, launch
from tests.stage_process import CUTS, results
from tests.toys import toy_graph, toy_plan, toy_stages

ROOT = Path(__file__).parent.parent


def launched(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    return launch([sys.executable, "-m", "tests.stage_process", *arguments], len(CUTS), "stage {}".format)


def stage_processes() -> list[str]:
    """Command lines of stages that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"tests.stage_process" in words:
            found.append(str(words))
    return found


def test_two_processes_give_what_one_gives(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert launched(monkeypatch) == 0
    got = json.loads(capfd.readouterr().out)
    local = LocalBackend(toy_plan(CUTS, 1, 2), toy_graph(), toy_stages(CUTS).__getitem__)
    expected = json.loads(json.dumps(results(local)))
    for key in ("forced", "scores"):
        for one, other in zip(got.pop(key), expected.pop(key), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert got == expected


@pytest.mark.parametrize(
    ("fate", "told"), [("killed", "error: stage 1 was killed by SIGKILL"), ("raises", "error: stage 1 ended with exit code 1")]
)
def test_a_stage_that_dies_is_named_and_nothing_is_left(
    fate: str, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launched(monkeypatch, fate) == 1
    assert told in capfd.readouterr().err
    assert stage_processes() == []


def test_a_stage_that_stops_is_named_by_the_others(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("llmpq.runtime.launcher._GRACE_S", 1.0)
    assert launched(monkeypatch, "stops", "0.5") == 1
    said = capfd.readouterr().err
    assert "error: stage 0 (CPU:0 on host0) lost stage 1 (CPU:1 on host0): no sign of life for 0.6 s" in said
    assert "error: stage 1 does not answer; all stages were stopped" in said
    assert stage_processes() == []


def test_another_number_of_processes_than_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LLMPQ_LAUNCHER", raising=False)
    with pytest.raises(BackendError, match="3 processes were started for a plan of 2 stages; start one for each"):
        DistributedBackend(toy_plan(CUTS), toy_graph(), toy_stages(CUTS).__getitem__)


def test_one_process_is_a_pipeline_of_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LLMPQ_LAUNCHER", raising=False)
    local = LocalBackend(toy_plan((4,)), toy_graph(), toy_stages((4,)).__getitem__)
    with DistributedBackend(toy_plan((4,)), toy_graph(), toy_stages((4,)).__getitem__) as backend:
        assert results(backend) == results(local)
