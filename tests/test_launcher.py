"""The launcher: environment, streams, the stage to blame, and nothing left behind. The stages are plain Python, without torch."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmpq.runtime.launcher import launch

ROOT = Path(__file__).parent.parent


def stage(code: str) -> list[str]:
    prelude = "import os, sys, time, signal, subprocess; rank = int(os.environ['RANK'])\n"
    return [sys.executable, "-c", prelude + code]


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_stage_gets_its_place(tmp_path: Path) -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_WAIT_POLICY"]
    code = f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert launch(stage(code), 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"{r} {r} 3 127.0.0.1 PASSIVE" for r in range(3)]


def test_stage_0_speaks_plainly_and_the_others_with_their_name(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(stage("print('out', rank); print('err', rank, file=sys.stderr)"), 2, "stage {} (CPU)".format) == 0
    out, err = capfd.readouterr()
    assert out == "out 0\n"
    assert sorted(err.splitlines()) == ["[stage 1 (CPU)] err 1", "[stage 1 (CPU)] out 1", "err 0"]


@pytest.mark.parametrize(
    ("code", "expected", "told"),
    [
        ("if rank == 1: sys.exit(2)\ntime.sleep(600)", 2, "error: stage 1 ended with exit code 2"),
        ("if rank == 1: os.kill(os.getpid(), 9)\ntime.sleep(600)", 1, "error: stage 1 was killed by SIGKILL"),
        # stages 0 and 2 notice first that something is wrong; the cause ends later, and is blamed
        ("time.sleep(0.5 * (rank == 1))\nsys.exit(3 if rank == 1 else 75)", 3, "error: stage 1 ended with exit code 3"),
        ("sys.exit(75)", 1, "lost another stage"),
    ],
)
def test_the_stage_to_blame_is_named(code: str, expected: int, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(stage(code), 3) == expected
    (line,) = capfd.readouterr().err.splitlines()
    assert told in line
    assert "all stages were stopped" in line


def test_a_stage_that_hangs_while_the_others_give_it_up_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmpq.runtime.launcher._GRACE_S", 0.5)
    assert launch(stage("time.sleep(600) if rank == 1 else sys.exit(75)"), 3) == 1
    assert capfd.readouterr().err == "error: stage 1 does not answer; all stages were stopped\n"


def test_what_a_stage_started_is_killed_with_it(tmp_path: Path) -> None:
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open(r'{tmp_path}/' + str(rank), 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"while len(os.listdir(r'{tmp_path}')) < 2: time.sleep(0.01)\n"
        "sys.exit(4) if rank else time.sleep(600)"
    )
    assert launch(stage(code), 2) == 4
    started = [int(pid) for rank in range(2) for pid in (tmp_path / str(rank)).read_text().split()]
    for _ in range(500):  # signals are delivered, and the dead reaped, a moment later
        if not any(map(is_alive, started)):
            return
        time.sleep(0.02)
    pytest.fail(f"still running: {[pid for pid in started if is_alive(pid)]}")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupt_reaches_every_stage(number: signal.Signals, expected: int, tmp_path: Path) -> None:
    inner = (
        f"signal.signal({int(number)}, lambda *_: (open(r'{tmp_path}/' + str(rank), 'w').close(), sys.exit(5)))\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    launcher = f"import sys; from llmpq.runtime.launcher import launch; sys.exit(launch({stage(inner)!r}, 2))"
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    assert process.stderr.readline() == "[stage 1] ready\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
