"""benchmarks/hetero: groups hold their limits and are gone afterwards, however a run ends."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks" / "hetero"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cgroups = load("cgroups")
REASON = cgroups.unavailable()
needs_cgroups = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_a_share_that_the_kernel_refuses_is_named() -> None:
    with pytest.raises(cgroups.CgroupError, match=r"a share of 0\.1 cores; expected 0\.2 to 1"):
        cgroups.Limits(0.1)


def test_a_share_is_a_quota_of_a_period_of_five_milliseconds() -> None:
    assert (cgroups.Limits(0.25).quota_us, cgroups.PERIOD_US) == (1250, 5000)


def test_the_largest_shares_get_cores_of_their_own() -> None:
    assert cgroups.shared_out({"a": 0.225, "b": 0.9, "c": 0.45}, [2, 5]) == {"b": 2, "c": 5, "a": 5}


@needs_cgroups
def test_every_thread_of_a_group_stays_on_its_core() -> None:
    code = "import threading, time\nfor _ in range(2): threading.Thread(target=time.sleep, args=(60,)).start()\nprint(flush=True)"
    with cgroups.groups({"x": cgroups.Limits(0.3)}) as made:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        made["x"].add(process.pid)
        threads = [int(each.name) for each in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(threads) == 3
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({made["x"].core})}
    process.wait()


@needs_cgroups
def test_shares_that_fill_the_machine_are_refused() -> None:
    many = {str(index): cgroups.Limits(1.0) for index in range(os.cpu_count() or 1)}
    with pytest.raises(cgroups.CgroupError, match="cores in all; at most"), cgroups.groups(many):
        pass


@needs_cgroups
def test_what_runs_beside_a_group_hardly_takes_from_its_share() -> None:
    with cgroups.groups({"one": cgroups.Limits(0.5)}) as made:
        (name, most) = next(iter(cgroups.WEIGHTS[cgroups.version()].items()))
        assert (made["one"].folders[0] / name).read_text().strip() == most


@needs_cgroups
def test_a_process_in_a_group_is_held_back_and_ends_with_it() -> None:
    with cgroups.groups({"slow": cgroups.Limits(0.2)}) as made:
        process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        made["slow"].add(process.pid)
        deadline = time.monotonic() + 20
        while made["slow"].throttled_s() == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert made["slow"].pids() == (process.pid,)
        assert made["slow"].throttled_s() > 0
    assert process.wait() == -signal.SIGKILL
    assert cgroups.orphans() == ()


@needs_cgroups
def test_an_interrupted_run_leaves_no_group() -> None:
    with pytest.raises(KeyboardInterrupt), cgroups.groups({"a": cgroups.Limits(0.2), "b": cgroups.Limits(0.2, 64 << 20)}):
        raise KeyboardInterrupt
    assert cgroups.orphans() == ()


@needs_cgroups
def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    code = (
        "import os, sys\nsys.path.insert(0, sys.argv[1])\nimport cgroups\n"
        "with cgroups.groups({'x': cgroups.Limits(0.2)}): os._exit(9)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(FOLDER)])
    assert process.wait() == 9
    assert f"{cgroups.PREFIX}-{process.pid}-x" in cgroups.remove_stale()
    assert cgroups.remove_stale() == ()


@needs_cgroups
def test_a_process_over_its_memory_is_ended() -> None:
    with cgroups.groups({"small": cgroups.Limits(0.5, 64 << 20)}) as made:
        code = "import sys; sys.stdin.read(1); x = bytearray(512 << 20); print(len(x))"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        made["small"].add(process.pid)
        out, _ = process.communicate(b"x", timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert out == b""
