"""benchmarks/runtime.py and hetero_runtime.py: what they make of times, without taking any that count."""

import importlib.util
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from llmpq.runtime.simulate import Span

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> "Load":
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return Load(monkeypatch)


class Load:
    """A benchmark by its file name, gone from the loaded modules afterwards: names like `machine` are anybody's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, name: str, path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        self._monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module


def spans() -> list[Span]:
    return [
        Span(0, "P0", 0.0, 2.0, 2.5),
        Span(1, "P0", 2.5, 5.0, 5.0),
        Span(0, "D0", 6.0, 7.0, 7.0),
        Span(1, "D0", 7.0, 9.0, 9.0),
    ]


def test_every_engine_gets_the_same_prompts_in_turns_and_the_first_turn_does_not_count(load: Load) -> None:
    runtime = load("runtime", BENCHMARKS / "runtime.py")
    asked: list[tuple[str, int, int]] = []

    def engine(name: str, first_s: float) -> object:
        def generate(prompts: Sequence[Sequence[int]], new_tokens: int) -> object:
            asked.append((name, hash(tuple(map(tuple, prompts))), new_tokens))
            return runtime.Times(first_s, first_s + 2.0)

        return generate

    cell = runtime.Cell(4, 8, 5)
    rows = list(runtime.measure({"llmpq": engine("llmpq", 1.0), "vllm": engine("vllm", 4.0)}, [cell], 100, 3))
    assert [name for name, _, _ in asked] == ["llmpq", "vllm"] * 4
    assert len({prompts for _, prompts, _ in asked}) == 1
    assert [new for _, _, new in asked] == [2, 2, *[5] * 6]
    assert [(row["engine"], row["prefill"]["median"], row["decode"]["median"]) for row in rows] == [
        ("llmpq", 32.0, 8.0),
        ("vllm", 8.0, 8.0),
    ]


def test_a_cell_of_the_table_has_both_ratios_of_the_same_turns(load: Load) -> None:
    runtime = load("runtime", BENCHMARKS / "runtime.py")
    rates = {"transformers": 10.0, "llmpq": 15.0, "vllm": 20.0}
    rows = {("w8a8", name, 4): {"decode": {"median": rate}} for name, rate in rates.items()}
    assert runtime._cell(rows, ("w8a8", "llmpq", 4), "decode") == "15.0 (1.50, 0.75)"
    assert runtime._cell(rows, ("w8a8", "vllm", 4), "decode") == "20.0"
    assert runtime._cell(rows, ("16", "llmpq", 4), "decode") == ""


def test_charts_of_one_file_share_their_scale_and_are_valid(load: Load) -> None:
    gantt = load("hetero_gantt", BENCHMARKS / "hetero" / "gantt.py")
    late = [Span(0, "P0", 0.0, 1.0, 1.0), Span(1, "P0", 1.0, 18.0, 18.0)]
    drawn = ElementTree.fromstring(gantt.drawing({"predicted": spans(), "measured <now>": late}, ["CPU:0", "CPU:1"]))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"predicted", "measured <now>", "CPU:0", "CPU:1"} <= set(texts)
    assert texts.count("18 s") == 2


def test_busy_is_the_share_of_computing_and_a_beginning_has_so_many_actions_of_each_stage(load: Load) -> None:
    gantt = load("hetero_gantt", BENCHMARKS / "hetero" / "gantt.py")
    assert gantt.busy(spans(), 2, 9.0) == [3.0 / 9.0, 4.5 / 9.0]
    assert [(span.stage, span.action) for span in gantt.beginning(spans(), 1)] == [(0, "P0"), (1, "P0")]


def test_gains_are_geometric_means_over_clusters_and_errors_medians_over_plans(load: Load) -> None:
    hetero_runtime = load("hetero_runtime", BENCHMARKS / "hetero_runtime.py")

    def row(names: list[str], seconds: float, predicted: float) -> dict[str, object]:
        return {"names": names, "predicted_s": predicted, "runs": [{"seconds": seconds}] * 3}

    clusters = {
        "a": {"rows": [row(["llmpq"], 2.0, 2.2), row(["assign-hand", "assign-even"], 4.0, 4.0)]},
        "b": {"rows": [row(["llmpq", "assign-hand"], 1.0, 0.5)]},
    }
    found = hetero_runtime.summary({"clusters": clusters})
    assert found["gain"] == {"assign-hand": pytest.approx(2**0.5), "assign-even": 2.0}
    assert (found["error"], found["largest_error"]) == (pytest.approx(0.1), 0.5)


def test_a_slow_link_holds_what_is_sent_and_can_be_made_fast_again(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = load("hetero_warm", BENCHMARKS / "hetero" / "warm.py")
    held: list[float] = []
    sent: list[int] = []
    monkeypatch.setattr(dist, "send", lambda tensor, peer: sent.append(peer))
    monkeypatch.setattr(warm, "time", SimpleNamespace(sleep=held.append, perf_counter=time.perf_counter))
    warm.slow_sends(1000.0)
    warm.slow_sends(2000.0)
    dist.send(torch.zeros(50), 1)
    warm.slow_sends(None)
    dist.send(torch.zeros(50), 2)
    assert (held, sent) == ([0.1], [1, 2])


def test_an_action_ends_when_what_was_computed_since_the_last_would_with_the_share_of_a_core(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm, now, slept = load("hetero_warm", BENCHMARKS / "hetero" / "warm.py"), [0.0, 0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[1], sleep=sleep)
    monkeypatch.setattr(warm, "time", clock)
    pace = warm.Pace(0.25)
    now[:] = [100.0, 30.0]  # imports and building
    pace.begin()
    now[:] = [101.0, 32.0]
    pace(1, "P0", 100.5, 101.0)  # two seconds computed, half of one by the clock: a second thread, or before the action
    now[:] = [109.0, 32.5]
    pace(1, "D0", 108.5, 109.0)
    assert slept == [7.5, 1.5]
    assert pace.noted == [(1, "P0", 100.5, 108.5), (1, "D0", 108.5, 110.5)]


def test_a_device_of_a_whole_core_is_not_held_back(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    warm, slept = load("hetero_warm", BENCHMARKS / "hetero" / "warm.py"), list[float]()
    clock = SimpleNamespace(perf_counter=lambda: 3.0, process_time=lambda: 1.0, sleep=slept.append)
    monkeypatch.setattr(warm, "time", clock)
    warm.Pace(1.0)(0, "P0", 1.0, 3.0)
    assert slept == [0.0]


def test_a_stage_is_prepared_as_asked_only_while_it_is_loaded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmpq.fused import prepare

    fused, own = load("fused", BENCHMARKS / "fused.py"), prepare.prepare_stage
    asked: list[torch.nn.Module] = []

    @contextmanager
    def opened(out: Path) -> Iterator[str]:
        prepare.prepare_stage(torch.nn.Identity())
        yield str(out)

    monkeypatch.setattr(fused, "by_us", opened)
    with fused.prepared(Path("out"), asked.append) as generate:
        assert (generate, prepare.prepare_stage) == ("out", own)
    assert len(asked) == 1
    rows = [
        {"model": "demo", "precision": "16", "batch": 4, "engine": name, "decode": {"median": speed}}
        for name, speed in zip(fused.NAMES, (100.0, 150.0, 230.0))
    ]
    (column,) = [column for column in fused.table(rows, fused.SUBJECTS[1]).columns if column.header == "all fused"]
    assert list(column.cells) == ["230 (2.30x)"]
