"""benchmarks/vllm_hetero.py: the search by hand, what is compared, and that nothing is left behind; vLLM itself is not run."""

import os
import signal
import stat
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
FAKE_HOST = """#!{python}
import json, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time, os; os.setpgid(0, 0); time.sleep(600)"])
print(json.dumps({{"warm": True}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "start" in request:
        print(json.dumps({{"ready": [{{"pid": child.pid}}]}}), flush=True)
    elif "stop" in request:
        print(json.dumps({{"stopped": True}}), flush=True)
    else:
        print(json.dumps({{"error": "no such model"}}), flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def hetero(name: str) -> Any:
    return import_module(f"hetero.{name}")


@given(st.integers(1, 4), st.integers(4, 9))
def test_partitions_are_every_way_of_giving_each_stage_a_layer(stages: int, layers: int) -> None:
    found = list(hetero("hand").partitions(layers, stages))
    assert len(set(found)) == len(found)
    assert all(sum(lengths) == layers and min(lengths) >= 1 and len(lengths) == stages for lengths in found)
    choose = 1
    for index in range(stages - 1):
        choose = choose * (layers - 1 - index) // (index + 1)
    assert len(found) == choose


@given(st.integers(2, 3), st.integers(6, 12), st.tuples(st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0.1, 1)))
def test_the_search_ends_where_no_neighbour_is_better(stages: int, layers: int, speeds: tuple[float, float, float]) -> None:
    hand = hetero("hand")
    possible = set(hand.partitions(layers, stages))

    def measure(lengths: tuple[int, ...]) -> float:
        return 1 / max(length / speed for length, speed in zip(lengths, speeds))

    found = hand.climb((layers - stages + 1, *(1,) * (stages - 1)), possible, measure)
    best = max(found, key=lambda lengths: found[lengths])
    near = set(hand.neighbours(best)) & possible
    assert near <= set(found) and all(found[other] <= found[best] for other in near)
    assert hand.balanced(possible, speeds) in possible


def test_on_two_stages_two_worse_partitions_are_measured_on_each_side() -> None:
    hand = hetero("hand")
    found = hand.climb((8, 8), set(hand.partitions(16, 2)), lambda lengths: -abs(lengths[0] - 11))
    assert {(9, 7), (10, 6), (11, 5), (12, 4), (13, 3)} <= set(found)


def test_an_even_split_is_that_of_vllm() -> None:
    """vLLM 0.32, distributed/utils.get_pp_indices: the last stage gets none of what is left over."""
    even = hetero("placing").even_partition
    assert [even(16, 1), even(16, 2), even(16, 3), even(17, 3), even(17, 2), even(18, 4)] == [
        (16,),
        (8, 8),
        (5, 6, 5),
        (6, 6, 5),
        (9, 8),
        (4, 5, 5, 4),
    ]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_requests_are_dealt_out_by_shares_each_once(shares: list[int]) -> None:
    hands = hetero("hand").dealt(shares)
    assert [len(hand) for hand in hands] == shares
    assert sorted(number for hand in hands for number in hand) == list(range(sum(shares)))


def row(name: str, load: str, median: float) -> dict[str, Any]:
    return {"row": name, "load": load, "median": median}


def test_the_mean_leaves_discarded_clusters_out_and_names_what_was_lost() -> None:
    clusters = {
        "a": {"rows": [row("assign-hand", "batch", 10.0), row("llmpq", "batch", 20.0)]},
        "b": {"rows": [row("assign-hand", "batch", 10.0), row("llmpq", "batch", 5.0)]},
        "c": {"rows": [row("assign-hand", "batch", 10.0), row("llmpq", "batch", 90.0)], "discarded": True},
    }
    (line, whole) = hetero("vllm_table").means({"clusters": clusters})
    assert line == "batch: 1.000x over 2; below 1: b batch 0.50" and whole.startswith("batch and serving: 1.000x over 2")


def test_the_trace_is_cut_to_the_model_and_all_of_it_is_asked_for() -> None:
    case = hetero("vllm_case")
    asked = case.requests()
    assert len(asked) == case.SERVED and asked[0].arrival_s == 0 and asked[-1].arrival_s == pytest.approx(case.SECONDS)
    assert all(4 <= each.prompt_len <= case.LONGEST_PROMPT and 4 <= each.gen_len <= case.LONGEST_ANSWER for each in asked)
    parts = [case.trace_job((0, 2)), case.trace_job((1, *range(3, case.SERVED)))]
    together = sorted((each for part in parts for each in part["requests"]), key=lambda each: each["arrival_s"])
    assert together == case.trace_job()["requests"]


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "hetero" / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_cluster_file_asks_for_shares_that_the_machine_has(path: Path) -> None:
    from llmpq.hardware.cluster import Cluster

    cluster = Cluster.load(path)
    assert cluster.name == path.stem
    assert sum(device.speed for device in cluster.devices) <= 1.6
    for device in cluster.devices:
        hetero("cgroups").Limits(device.speed, device.memory_bytes)


def test_a_device_without_wide_instructions_has_no_4_bit_kernel() -> None:
    from llmpq.hardware.cluster import Cluster

    devices = Cluster.load(BENCHMARKS / "hetero" / "clusters" / "unlike-instructions.yaml").devices
    assert [device.type.precisions for device in devices] == [None, ("16", "w8a8")]


def test_placements_by_hand_are_named_by_what_is_not_as_usual() -> None:
    found = hetero("bench").Found
    assert found(1.0, "w8a8", (9, 7), (0, 1)).name == "w8a8 9,7"
    assert found(1.0, "w8a8", (7, 9), (1, 0)).name == "w8a8 7,9 on 1,0"


def test_a_placement_is_simulated_by_the_costs_of_its_plan() -> None:
    """One stage and all prompts in one step: vLLM's schedule is then the plan's own."""
    from dataclasses import replace

    from llmpq.planning.joint import costed
    from llmpq.sensitivity import prior
    from llmpq.simulation.requests import Request
    from llmpq.workload import Batch
    from tests.values import llama_graph, program, two_cpus

    plain = program(llama_graph(4), two_cpus(), Batch(4, 64, 16), "16")
    asked = costed(replace(plain, request=replace(plain.request, engine="vllm")))
    ready = replace(asked, sensitivity=prior(asked.graph, asked.request.precisions))
    placed = hetero("placing").by_hand(ready, "model", (0,), (4,), "16", (4, 4))
    simulated = placed.simulated((Request(0.0, 64, 16),) * 4, ready)
    assert simulated == pytest.approx(placed.predicted_tokens_per_s, rel=0.1)


def test_only_ranks_without_wide_instructions_start_with_variables() -> None:
    ranks = hetero("rank_environment")
    assert ranks.variables("CPU") == {}
    assert ranks.variables(ranks.AVX2)["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@pytest.fixture
def fake_python(tmp_path: Path) -> Path:
    """An interpreter that plays the engine host, with a child in a process group of its own."""
    path = tmp_path / "python"
    path.write_text(FAKE_HOST.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def gone(pid: int, patience_s: float = 10.0) -> bool:
    """A process that was killed may still be there for a moment on a busy machine."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def ends_soon(pid: int) -> bool:
    """Whether it ends within ten seconds: the children of a process that was killed hear of it a little later."""
    deadline = time.monotonic() + 10
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return gone(pid)


def test_an_engine_that_fails_is_an_error_in_its_own_words(fake_python: Path, tmp_path: Path) -> None:
    engine = hetero("engine")
    with engine.engine_host(tmp_path / "log", fake_python) as host:
        (ready,) = host.start([{}])
        with pytest.raises(engine.EngineError, match="no such model"):
            host.run([{}])
        host.stop()
    assert gone(ready["pid"]) and gone(host.process.pid)


def test_orders_and_steps_are_tried_for_every_precision_that_is_not_far_behind() -> None:
    bench = hetero("bench")
    found = [
        bench.Found(speed, option, (8, 8), (0, 1)) for speed, option in ((60, "w8a8"), (75, "w8a8"), (80, "w4a16"), (50, "16"))
    ]
    assert {(each.option, each.tokens_per_s) for each in bench.promising_of_each(found)} == {("w8a8", 75), ("w4a16", 80)}
    assert bench.promising_of_each([]) == []


def test_an_interrupt_leaves_no_process(fake_python: Path, tmp_path: Path) -> None:
    engine = hetero("engine")
    pids = []
    with pytest.raises(KeyboardInterrupt), engine.engine_host(tmp_path / "log", fake_python) as host:
        pids += [host.start([{}])[0]["pid"], host.process.pid]
        raise KeyboardInterrupt
    assert all(ends_soon(pid) for pid in pids)


def test_ctrl_c_ends_a_run_with_its_groups_and_processes(fake_python: Path, tmp_path: Path) -> None:
    if reason := hetero("cgroups").unavailable():
        pytest.skip(reason)
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from hetero.cgroups import Limits, groups\nfrom hetero.engine import engine_host\n"
        "with groups({'x': Limits(0.2)}) as made, engine_host(Path(sys.argv[1]), Path(sys.argv[2])) as host:\n"
        "    pid = host.start([{}])[0]['pid']\n    made['x'].add(pid)\n    print(pid, flush=True)\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    command = [sys.executable, "-c", code, str(tmp_path / "log"), str(fake_python)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert ends_soon(child)
    cgroups = hetero("cgroups")
    left = [path for folder in (cgroups.ROOT, cgroups.ROOT / "cpu") for path in folder.glob(f"{cgroups.PREFIX}-{process.pid}-*")]
    assert left == []
