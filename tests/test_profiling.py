"""Measuring: grids, resuming, time limits, probes of the demo model, and the two commands."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, replace
from itertools import count
from pathlib import Path

import pytest
import torch

from llmpq.compiled import load
from llmpq.costs.profile import Profile
from llmpq.errors import InputError
from llmpq.frontend.models import resolve
from llmpq.precision import PRECISIONS, Precision, parse_precisions
from llmpq.profiling import measure as measuring
from llmpq.profiling import taking
from llmpq.profiling.link import fit, measure_link
from llmpq.profiling.measure import measure, measure_point, timing
from llmpq.profiling.messages import measure_message
from llmpq.profiling.neighbour import measure_beside
from llmpq.profiling.probe import PassTimes, Probe, Subject
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.profiling.profiler import continued, empty_profile, profile_model, subject_of
from llmpq.profiling.sizes import Extent, Size, enough
from llmpq.profiling.taking import take_profile
from llmpq.profiling.validation import Validation, validate
from llmpq.serialize import dumps
from tests.conftest import CommandLine

EXTENT = Extent((1, 2), (4, 8), (8, 16), 8, 100.0)
TWO = parse_precisions("16,w4a16")

MIB = 2**20


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(resolve("demo", weights=False), "cpu")


class FakeProbe:
    """Passes of a second per token and sequence, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[int, int, int]] = []

    def pass_times(self, rows: int, tokens: int, context: int) -> PassTimes:
        self.asked.append((rows, tokens, context))
        self.now += rows * tokens
        return PassTimes(0.0, (float(rows * tokens),), 0.0, 0.0)

    def clock(self) -> float:
        return self.now


def run(begun: Profile, probe: FakeProbe, extent: Extent, kept: Callable[[Profile], None] = lambda profile: None) -> Profile:
    return measure(begun, TWO, 64, extent, lambda precision: probe, kept, clock=probe.clock)


@pytest.fixture
def empty(subject: Subject) -> Profile:
    return empty_profile(subject, 1.0)


def test_a_grid_goes_from_quick_to_slow_within_the_positions_of_the_model() -> None:
    found = EXTENT.sizes(12)
    assert found == (
        Size(1, 1, 8),
        Size(1, 1, 12),
        Size(2, 1, 8),
        Size(2, 1, 12),
        Size(1, 4, 4),
        Size(2, 4, 4),
        Size(1, 8, 8),
    )


def test_slow_passes_are_repeated_less() -> None:
    assert not enough([0.01] * 3)
    assert enough([0.1] * 3)
    assert not enough([2.0])
    assert enough([2.0, 2.0])
    assert enough([1e-6] * 15)


def test_a_timing_is_the_median_between_tenths() -> None:
    found = timing([float(second) for second in range(1, 12)])
    assert (found.low_s, found.median_s, found.high_s) == (2.0, 6.0, 10.0)
    assert timing([3.0]) == replace(found, median_s=3.0, low_s=3.0, high_s=3.0)


def test_passes_that_other_processes_disturbed_do_not_count() -> None:
    disturbed, quiet = PassTimes(0.0, (9.0,), 0.0, 0.0, busy=0.5), PassTimes(0.0, (0.1,), 0.0, 0.0)
    passes = iter([disturbed if number % 2 else quiet for number in range(99)])

    class Disturbed:
        def pass_times(self, rows: int, tokens: int, context: int) -> PassTimes:
            return next(passes)

    (layer,) = measure_point(TWO[0], Size(1, 1, 8), Disturbed()).layers
    assert layer == timing([0.1])


def test_every_point_is_kept_as_soon_as_it_is_there(empty: Profile) -> None:
    kept: list[int] = []
    found = run(empty, FakeProbe(), replace(EXTENT, limit_s=1e6), lambda profile: kept.append(len(profile.points)))
    assert kept == list(range(1, len(found.points) + 1))
    assert {point.key for point in found.points} == {(p.name, *astuple(s)) for p in TWO for s in EXTENT.sizes(64)}


def test_what_was_measured_is_not_measured_again(empty: Profile) -> None:
    whole = run(empty, FakeProbe(), replace(EXTENT, limit_s=1e6))
    again = FakeProbe()
    assert run(whole, again, replace(EXTENT, limit_s=1e6)) == whole
    assert not again.asked
    cut = replace(whole, points=whole.points[:-1])
    assert run(cut, again, replace(EXTENT, limit_s=1e6)) == whole
    assert {(rows, tokens) for rows, tokens, _ in again.asked} == {(whole.points[-1].rows, whole.points[-1].tokens)}


def test_when_time_is_short_every_precision_has_its_quick_points(empty: Profile) -> None:
    probe = FakeProbe()
    found = run(empty, probe, replace(EXTENT, limit_s=40.0))
    measured = {p.name: {point.rows * point.tokens for point in found.points if point.precision == p.name} for p in TWO}
    assert all(works and max(works) < 8 for works in measured.values())
    assert probe.now <= 40.0


@pytest.mark.parametrize("precision", ["16", "w8a8", "w8a16", "w4a16"])
def test_a_probe_times_ends_and_a_layer_of_each_kind_at_every_precision(subject: Subject, precision: str) -> None:
    ticks = count()
    probe = Probe(subject, PRECISIONS[precision], clock=lambda: float(next(ticks)))
    layers = subject.graph.num_layers
    for shape in ((2, 8, 8), (2, 1, 9)):
        assert probe.pass_times(*shape) == PassTimes(1.0, (1.0,), 1.0, layers + 1.0)  # one tick for each hook and end


def test_a_probe_keeps_only_as_many_layers_as_leave_the_caches(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.profiling.probe.WORKING_SET", 3 * subject.graph.kinds[0].weight_bytes(PRECISIONS["16"]))
    ticks = count()
    probe = Probe(subject, PRECISIONS["16"], clock=lambda: float(next(ticks)))
    assert probe.pass_times(1, 4, 4) == PassTimes(1.0, (1.0,), 1.0, 4.0)


def test_random_weights_compute_finite_numbers(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    sampled = torch.zeros(2, dtype=torch.int64)

    def record(logits: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(logits)
        return sampled

    monkeypatch.setattr("llmpq.profiling.probe.sample", record)
    for precision in ("16", "w8a8", "w4a16"):
        Probe(subject, PRECISIONS[precision]).pass_times(2, 8, 8)
    assert all(bool(logits.isfinite().all()) and float(logits.std()) > 0 for logits in seen)
    assert len(seen) == 3


def test_latency_and_bandwidth_of_a_link_are_found_again() -> None:
    found = fit([(size, 5e-5 + size / 2e9) for size in (4096, 2**20, 2**23)])
    assert (found.latency_s, found.bandwidth_bytes_per_s) == pytest.approx((5e-5, 2e9))
    assert found.provenance == "measured"


def test_a_link_between_two_processes_is_measured() -> None:
    found = measure_link()
    assert found.bandwidth_bytes_per_s > 0
    assert not torch.distributed.is_initialized()


def test_what_messages_take_of_a_processor_is_measured_by_the_runtime_between_two_processes() -> None:
    assert 0 < measure_message(128) < 1
    assert not torch.distributed.is_initialized()


def test_a_profile_beside_another_process_has_the_same_sizes_again(subject: Subject, empty: Profile) -> None:
    kept: list[Profile] = []
    extent = Extent((1,), (16,), (32,), 16, 30.0)
    alone = profile_model(subject, TWO[:1], extent, lambda profile: None, empty, with_link=False)
    found = measure_beside(alone, subject, TWO[:1], extent, "demo", kept.append)
    assert [point.key for point in found.beside] == [point.key for point in alone.points]
    assert (found.points, kept[-1]) == (alone.points, found)
    assert found.busy.points == found.beside
    again = measure_beside(found, subject, TWO[:1], extent, "demo", kept.append)
    assert again == found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_the_process_beside_ends_with_the_one_that_was_killed() -> None:
    code = (
        "import subprocess, time\nfrom llmpq.precision import PRECISIONS\nfrom llmpq.profiling import neighbour\n"
        "start, started = subprocess.Popen, []\n"
        "subprocess.Popen = lambda *args, **given: started.append(start(*args, **given)) or started[0]\n"
        "with neighbour.busy_neighbour('demo', PRECISIONS['16']):\n    print(started[0].pid, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        beside = int(process.stdout.readline())
        assert is_alive(beside)
        process.kill()
    deadline = time.monotonic() + 20
    while is_alive(beside) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(beside)


def is_alive(pid: int) -> bool:
    """A zombie that nobody has reaped yet has ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_what_a_model_takes_beside_another_process_is_asked_of_a_cpu_and_a_model_with_a_name(tmp_path: Path) -> None:
    for engine, device in (("vllm", "cpu"), ("local", "cuda:0")):
        with pytest.raises(InputError, match="--beside is measured on the CPU, for the own runtime; leave it out"):
            take_profile("demo", tmp_path / "p.json", "16", beside=True, engine=engine, device=device)
    with pytest.raises(InputError, match="name it, or save it"):
        take_profile(torch.nn.Identity(), tmp_path / "p.json", "16", beside=True)


def test_points_in_which_the_embedding_has_what_every_stage_does_are_measured_again(empty: Profile) -> None:
    point = run(empty, FakeProbe(), EXTENT).points[0]
    begun = replace(empty, points=(point, replace(point, rows=99, rank=None)))
    assert continued(empty, begun).points == (point,)


def test_a_profile_of_another_model_or_speed_is_not_gone_on_with(subject: Subject, empty: Profile) -> None:
    for begun, named in ((replace(empty, ends="other"), "ends"), (replace(empty, speed=0.5), "speed")):
        with pytest.raises(InputError, match=f"has another {named}.*-o"):
            profile_model(subject, TWO, EXTENT, lambda profile: None, begun, with_link=False)


def test_profile_files_without_points_or_for_another_engine_are_refused(empty: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, empty)
    with pytest.raises(InputError, match="no pass was measured yet"):
        read_profile(path)
    write_profile(path, run(empty, FakeProbe(), replace(EXTENT, limit_s=1e6)))
    with pytest.raises(InputError, match="is of engine local"):
        read_profile(path, "vllm")
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]


@pytest.fixture
def tiny_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "QUICK", EXTENT)
    monkeypatch.setattr(measuring, "enough", lambda seconds: len(seconds) >= 2)


@pytest.mark.usefixtures("tiny_grid")
def test_a_profiled_machine_is_planned_for_by_what_was_measured(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profiled = cli("profile", "demo", "--quick", "--no-link", "--precisions", "16,w4a16", "-o", path)
    assert profiled.code == 0, profiled.err
    assert "demo on" in profiled.out
    before = path.read_bytes()
    assert cli("profile", "demo", "--quick", "--no-link", "--precisions", "16,w4a16", "-o", path).code == 0
    assert path.read_bytes() == before
    workload = ("--batch-size", "2", "--prompt-len", "8", "--gen-len", "8", "--indicator", "prior")
    asked = ("plan", "demo", "-c", "1xCPU", *workload, "--precisions", "16,w4a16")
    planned = cli(*asked, "--profile", path, "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["prediction"]["provenance"].startswith("measured, within")
    assert "measured" not in json.loads(cli(*asked, "--json").out)["prediction"]["provenance"]
    wider = cli(*asked[:-1], "16,w8a8", "--profile", path)
    assert "the profile has no times of w8a8" in wider.err
    refused = cli(*asked, "--profile", tmp_path / "missing.json")
    assert (refused.code, "does not exist" in refused.err) == (2, True)


@pytest.fixture(scope="module")
def validation(mixed_out: Path) -> Validation:
    """On a clock that goes on a second whenever it is asked."""
    ticks = count()
    return validate(load(mixed_out), quick=True, clock=lambda: float(next(ticks)))


def test_weights_and_cache_of_every_stage_are_predicted_to_the_byte(validation: Validation) -> None:
    exact = [row for row in validation.rows if row.what in ("weights", "kv cache")]
    assert len(exact) == 4
    assert all(row.measured == row.predicted > 0 for row in exact)


def test_what_lives_at_once_in_every_stage_is_no_more_than_planned_and_hardly_less(validation: Validation) -> None:
    live = [row for row in validation.rows if row.what == "live at once"]
    assert len(live) == 2
    assert all(row.is_within and row.predicted - MIB < row.measured <= row.predicted for row in live)


def test_every_stage_and_the_whole_are_compared_with_what_was_predicted(validation: Validation) -> None:
    times = [row for row in validation.rows if row.unit == "s"]
    assert [row.what for row in times] == ["prefill", "prefill", "decode", "decode", "end to end", "end to end"]
    assert [row.measured for row in times[:4]] == [1.0] * 4
    assert all(row.predicted > 0 and not row.is_within for row in times)  # of a clock that has nothing to do with time
    assert set(times) <= set(validation.outside)


def test_the_speed_that_would_fit_makes_the_prediction_the_measurement(validation: Validation) -> None:
    for device, given, fitting in validation.speeds:
        own = [row for row in validation.rows if row.device == device and row.unit == "s"]
        weights = [1.0 if row.what == "prefill" else validation.workload.gen_len - 1.0 for row in own]
        predicted = sum(w * row.predicted for w, row in zip(weights, own))
        assert predicted * given / fitting == pytest.approx(sum(w * row.measured for w, row in zip(weights, own)))


def test_a_tied_head_on_one_device_is_held_once(cli: CommandLine, tmp_path: Path) -> None:
    out, workload = tmp_path / "out", ("--batch-size", "1", "--prompt-len", "4", "--gen-len", "2")
    quick = ("--indicator", "prior", "--quantizer", "rtn", "--no-quality-check", "--precisions", "w4a16", "--theta", "0")
    assert cli("compile", "demo", "-c", "1xCPU", *workload, *quick, "-o", out).code == 0
    weights, cache, live = (row for row in validate(load(out)).rows if row.unit == "bytes")
    assert weights.measured == weights.predicted > 0
    assert cache.measured == cache.predicted > 0
    assert live.is_within


@pytest.mark.usefixtures("tiny_grid")
def test_validate_writes_a_profile_that_predicts_what_it_measured(
    cli: CommandLine, subject: Subject, mixed_out: Path, tmp_path: Path
) -> None:
    path, corrected = tmp_path / "profile.json", tmp_path / "corrected.json"
    options: tuple[Precision, ...] = parse_precisions("16,w8a8,w8a16,w4a16")
    found = measure(empty_profile(subject, 1.0), options, 64, replace(EXTENT, limit_s=1e9), lambda _: FakeProbe(), lambda _: None)
    path.write_text(dumps(found))
    told = cli("validate", mixed_out, "--quick", "--profile", path, "-o", corrected, "--json")
    assert told.code == 0, told.err
    rows = json.loads(told.out)["rows"]
    phases = {
        phase: [sum(row[side] for row in rows if row["what"] == phase) for side in ("predicted", "measured")]
        for phase in ("prefill", "decode")
    }
    factors = {phase: measured / predicted for phase, (predicted, measured) in phases.items()}
    again = read_profile(corrected)
    for before, after in zip(found.points, again.points):
        factor = factors["decode" if before.is_decode else "prefill"]
        assert after.last.median_s == pytest.approx(before.last.median_s * factor)
    assert cli("validate", mixed_out, "-o", corrected).code == 2
