"""Profiles of vLLM, whose process is a stand-in here: what is loaded, asked, kept and refused, and what plans make of it."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmpq.costs.profile import Profile
from llmpq.errors import BackendError, InputError
from llmpq.frontend.models import ModelSource, resolve
from llmpq.graph import LayerGraph
from llmpq.hardware.devices import device_types
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.profiling import measure as measuring
from llmpq.profiling import taking
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.profiling.sizes import Extent, Size
from llmpq.profiling.vllm_model import arrangements
from llmpq.profiling.vllm_profiler import VllmSubject, lacking_sizes, profile_in_vllm, sizes_of, vllm_subject
from tests.conftest import CommandLine
from tests.values import llama_graph, llama_kind

FAKE = Path(__file__).parent / "fake_vllm_steps.py"
EXTENT = Extent((1, 4), (8, 32, 128), (16, 64), 128, 1e6, prefill_rows=(1, 2), mixed=((32, 4),))
THREE = parse_precisions("16,w8a8,w4a16")
CPU = device_types()["CPU"]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that says that it has vLLM and runs the stand-in, which notes what it is asked."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\n[ "$1" = "-c" ] && echo 0.32.0 && exit\nexec {sys.executable} {FAKE} "$2"\n')
    path.chmod(0o755)
    monkeypatch.setenv("LLMPQ_STEPS", str(tmp_path / "asked"))
    monkeypatch.setattr(measuring, "enough", lambda seconds: len(seconds) >= 1)
    return path


@pytest.fixture
def subject(python: Path) -> VllmSubject:
    return vllm_subject(resolve("demo", weights=False), str(python))


def asked(tmp_path: Path) -> Iterator[Size]:
    return (Size(*json.loads(line).values()) for line in (tmp_path / "asked").read_text().splitlines())


def measured(subject: VllmSubject, extent: Extent = EXTENT, begun: Profile | None = None) -> Profile:
    return profile_in_vllm(subject, THREE, extent, lambda profile: None, begun, with_link=False)


def test_every_step_is_measured_once_for_all_precisions(subject: VllmSubject, tmp_path: Path) -> None:
    found = measured(subject)
    wanted = sizes_of(arrangements(subject.graph, THREE, CPU)[0], EXTENT)
    assert set(asked(tmp_path)) == set(wanted) and any(size.decoding for size in wanted)
    assert [point.precision for point in found.points] == ["16", "w8a8", "w4a16"] * len(wanted)
    assert found.engine == "vllm" and dict(found.machine.versions) == {"vllm": "0.32.0"}
    assert lacking_sizes(subject, THREE, EXTENT, found) == 0


def test_the_longest_prompt_leaves_a_position_for_its_answer(subject: VllmSubject) -> None:
    positions = subject.graph.max_positions
    extent = Extent((1,), (16, 2 * positions), (2 * positions,), 4 * positions, 60.0)
    sizes = sizes_of(arrangements(subject.graph, THREE, CPU)[0], extent)
    assert max(size.tokens for size in sizes) == max(size.context for size in sizes) == positions - 1


def test_layers_and_their_attention_are_those_of_the_precision(subject: VllmSubject) -> None:
    by_name = {p.precision: p for p in measured(subject).points if (p.rows, p.tokens, p.decoding) == (2, 32, 0)}
    for name, factor in (("16", 1.0), ("w8a8", 0.5), ("w4a16", 2.0)):
        layer, attention = by_name[name].layers[0], by_name[name].attention[0]
        assert layer is not None and attention is not None
        assert attention.median_s == pytest.approx(1e-8 * 2 * 32 * 32 / 2)
        assert layer.median_s == pytest.approx(factor * 1e-5 * 64 + attention.median_s)


def test_what_was_measured_is_not_measured_again(subject: VllmSubject, tmp_path: Path) -> None:
    whole = measured(subject)
    (tmp_path / "asked").unlink()
    assert measured(subject, begun=whole) == whole
    assert not (tmp_path / "asked").exists(), "vLLM is not even started"
    last = whole.points[-1].key[1:]
    cut = replace(whole, points=tuple(point for point in whole.points if point.key[1:] != last))
    assert measured(subject, begun=cut) == whole
    assert set(asked(tmp_path)) == {Size(*last)}


def test_when_time_is_up_what_is_there_is_kept(subject: VllmSubject) -> None:
    ticks = iter(range(10**6))
    found = profile_in_vllm(
        subject, THREE, replace(EXTENT, limit_s=20.0), lambda profile: None, None, 1.0, False, None, lambda: next(ticks)
    )
    assert 0 < len(found.points) < 3 * len(EXTENT.sizes(512))
    assert lacking_sizes(subject, THREE, EXTENT, found) > 0


@pytest.mark.parametrize(("named", "value"), [("engine", "local"), ("speed", 0.5), ("ends", "another")])
def test_a_profile_of_something_else_is_not_gone_on_with(subject: VllmSubject, named: str, value: object) -> None:
    changed: dict[str, Any] = {named: value}
    begun = replace(measured(subject), **changed)
    with pytest.raises(InputError, match=f"has another {named}.*-o"):
        measured(subject, begun=begun)


def test_a_death_of_vllm_is_told_with_its_cause(subject: VllmSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPQ_FAKE", "dies")
    with pytest.raises(BackendError, match="exit code 3") as raised:
        measured(subject)
    assert raised.value.reasons == ("ValueError: no kernel for this weight",)


def test_precisions_take_turns_until_their_weights_leave_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = llama_graph(num_layers=12)
    layer = graph.kinds[0].weight_bytes(PRECISIONS["16"])
    monkeypatch.setattr("llmpq.profiling.vllm_model.WORKING_SET", 2 * layer)
    (found,) = arrangements(graph, THREE, CPU)
    names = [precision.name for precision in found.options]
    assert names[:4] == ["16", "w8a8", "w4a16", "16"]
    assert sum(graph.kinds[0].weight_bytes(precision) for precision in found.options) >= 2 * layer
    assert len(names) < 12


def two_kinds() -> LayerGraph:
    """One layer unlike the three that follow it."""
    graph = llama_graph(num_layers=4)
    return replace(graph, kinds=(llama_kind(ffn=512), graph.kinds[0]), layer_kind=(0, 1, 1, 1))


def test_a_kind_with_too_few_layers_is_measured_by_one_model_for_each_precision() -> None:
    found = arrangements(two_kinds(), THREE, CPU)
    assert [each.precisions for each in found] == [("16",), ("w8a8",), ("w4a16",)]
    assert all(set(each.cells()) == {(0, name), (1, name)} for each in found for name in each.precisions)


def test_the_configuration_that_is_written_has_the_kept_layers_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps({"num_hidden_layers": 4, "layer_types": list("abcd"), "hidden_size": 128, "torch_dtype": "float32"})
    )
    (first, *_) = arrangements(two_kinds(), parse_precisions("w4a16"), CPU)
    cut = replace(first, options=first.options[:2])
    found = cut.config(ModelSource("tiny", config=path), "bfloat16")
    assert (found["num_hidden_layers"], found["layer_types"], found["dtype"]) == (2, ["a", "b"], "bfloat16")
    assert "torch_dtype" not in found
    targets = [target for group in found["quantization_config"]["config_groups"].values() for target in group["targets"]]
    assert {target.split(".")[2] for target in targets} == {"0", "1"}
    path.write_text("{}")
    with pytest.raises(InputError, match=r"none of num_hidden_layers.* is 4"):
        cut.config(ModelSource("tiny", config=path), "bfloat16")


def test_a_profile_of_one_engine_is_refused_for_another(subject: VllmSubject, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, measured(subject))
    assert read_profile(path, "vllm").engine == "vllm"
    with pytest.raises(InputError, match=r"is of engine vllm, the plan is for local; leave --profile out, or .*profile demo$"):
        read_profile(path)
    write_profile(path, replace(measured(subject), engine="local"))
    with pytest.raises(InputError, match=r"is of engine local, the plan is for vllm.*llmpq profile demo --engine vllm"):
        read_profile(path, "vllm")


def test_plans_for_batches_and_for_serving_rest_on_what_was_measured_in_vllm(
    cli: CommandLine, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "VLLM_QUICK", EXTENT)
    path = tmp_path / "profile.json"
    command = ("profile", "demo", "--engine", "vllm", "--quick", "--no-link", "--python", python, "-o", path)
    profiled = cli(*command, "--precisions", "16,w8a8,w4a16")
    assert profiled.code == 0, profiled.err
    assert "--engine vllm --profile" in profiled.out
    options = ("-c", "1xCPU", "--engine", "vllm", "--precisions", "16,w8a8", "--indicator", "prior", "--theta", "0", "--json")
    batch = cli("plan", "demo", *options, "--batch-size", "4", "--prompt-len", "32", "--gen-len", "8", "--profile", path)
    assert batch.code == 0, batch.err
    prediction = json.loads(batch.out)["prediction"]
    assert prediction["provenance"].startswith("measured")
    layers = 12 * (0.5 * 1e-5 * 4 * 32 + 4 * 1e-8 * 32 * 32 / 2)
    ends = 1e-4 + 1e-6 * 4 * 32 + 2e-4 + 3e-5 * 4 + 1e-7 * 4 * 32
    assert prediction["prefill_s"] == pytest.approx(layers + ends, rel=0.05)
    serving = tuple(option for option in options if option not in ("--theta", "0"))
    served = cli("plan", "demo", *serving, "--rate", "1", "--prompt-len", "64", "--gen-len", "16", "--profile", path)
    assert served.code == 0, served.err
    assert json.loads(served.out)["prediction"]["provenance"].startswith("measured")
    refused = cli("plan", "demo", "-c", "1xCPU", "--batch-size", "4", "--profile", path)
    assert refused.code == 2 and "is of engine vllm, the plan is for local" in refused.err


def test_vllm_is_measured_on_the_cpu_alone(cli: CommandLine, python: Path) -> None:
    refused = cli("profile", "demo", "--engine", "vllm", "--device", "cuda:0", "--python", python)
    assert refused.code == 2 and "the CPU alone" in refused.err
