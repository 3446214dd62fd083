"""Writing an output directory: stages, bytes, configuration, refusals, interruption."""

import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.shards import Progress, stage_tensors, write_shards
from llmpq.errors import CheckpointError, InputError, QuantizationError
from llmpq.plan import Plan
from llmpq.precision import PRECISIONS
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.packing import unpack
from llmpq.serialize import loads
from tests.tiny_checkpoint import MIXED, graph, llama, plan, save_llama

Written = tuple[Path, Path]
QUANTIZED_PARTS = {"w8a8": 2, "w8a16": 3, "w4a16": 3, "16": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("source") / "tiny")


def compile_to(out: Path, source: Path, chosen: Plan, tied: bool = True, progress: Progress | None = None) -> Path:
    write_shards(out, Checkpoint.open(source), graph(tied), chosen, assets=source, build={"seconds": 1.5}, progress=progress)
    return out


def contents(out: Path) -> dict[str, bytes]:
    """Every file but the one with durations."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "build.json"}


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_to(tmp_path_factory.mktemp("out") / "out", source, plan())


def test_the_directory_holds_stages_index_plan_configuration_and_assets(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [
        "build.json",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model-stage-00000-of-00002.safetensors",
        "model-stage-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "plan.json",
        "tokenizer.json",
    ]
    assert loads(Plan, (out / "plan.json").read_text()) == plan()
    build = json.loads((out / "build.json").read_text())
    assert build["seconds"] == 1.5 and build["quantization"]["quantizer"] == {"quantizer": "rtn", "clip": True}
    assert build["quantization"]["memory"]["peak"] > 0 and build["quantization"]["layers"] == []


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_file_alone_holds_exactly_its_tensors(out: Path, stage: int, tmp_path: Path) -> None:
    for name in ("plan.json", "manifest.json", f"model-stage-0000{stage}-of-00002.safetensors"):
        shutil.copy(out / name, tmp_path)
    tensors = stage_tensors(tmp_path, stage)
    layers = [{"0", "1"}, {"2", "3"}][stage]
    ends = [{"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}][stage]
    assert {name for name in tensors if ".layers." not in name} == ends
    assert {name.split(".")[2] for name in tensors if ".layers." in name} == layers
    for layer in layers:
        count = sum(name.startswith(f"model.layers.{layer}.") for name in tensors)
        assert count == 7 * QUANTIZED_PARTS[MIXED[int(layer)]] + 2


def test_stored_weights_are_the_quantized_source_and_the_rest_is_untouched(out: Path) -> None:
    original = llama().state_dict()
    stored = stage_tensors(out, 0) | stage_tensors(out, 1)
    for layer, option in enumerate(MIXED):
        name = f"model.layers.{layer}.mlp.down_proj"
        if option == "16":
            assert torch.equal(stored[f"{name}.weight"], original[f"{name}.weight"])
            continue
        parts = {key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")}
        expected = quantize_clipped(original[f"{name}.weight"], PRECISIONS[option])
        found = unpack(parts, PRECISIONS[option])
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.scale, expected.scale)
    assert torch.equal(stored["lm_head.weight"], original["model.embed_tokens.weight"])
    assert torch.equal(stored["model.norm.weight"], original["model.norm.weight"])


def test_the_index_points_every_tensor_to_the_file_that_holds_it(out: Path) -> None:
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = {name: load_file(out / name) for name in set(index["weight_map"].values())}
    assert {(tensor, name) for name, tensors in files.items() for tensor in tensors} == set(index["weight_map"].items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())


def test_the_configuration_targets_quantized_modules_and_ignores_the_others(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    section = config["quantization_config"]
    targets = {target for group in section["config_groups"].values() for target in group["targets"]}
    assert section["format"] == "mixed-precision" and config["dtype"] == "bfloat16"
    assert {target.split(".")[2] for target in targets} == {"0", "1", "2"} and len(targets) == 21
    assert len(section["ignore"]) == 8 and section["ignore"][-1] == "lm_head"
    assert all(name.startswith("model.layers.3.") for name in section["ignore"][:-1])


def test_sixteen_bits_everywhere_is_an_ordinary_checkpoint(source: Path, tmp_path: Path) -> None:
    out = compile_to(tmp_path / "out", source, plan(("16",) * 4, cuts=()))
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    stored, original = stage_tensors(out, 0), Checkpoint.open(source)
    assert set(stored) == set(original.names)
    assert all(torch.equal(tensor, original.tensor(name)) for name, tensor in stored.items())


def test_floats_and_scales_are_in_the_compute_dtype(source: Path, tmp_path: Path) -> None:
    out = compile_to(tmp_path / "out", source, plan(dtype="float16"))
    tensors = stage_tensors(out, 0) | stage_tensors(out, 1)
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}


def test_the_same_inputs_give_the_same_bytes_from_one_file_or_from_shards(out: Path, source: Path, tmp_path: Path) -> None:
    sharded = save_llama(tmp_path / "sharded", shard="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert (
        contents(out)
        == contents(compile_to(tmp_path / "a", source, plan()))
        == contents(compile_to(tmp_path / "b", sharded, plan()))
    )


def test_no_tensor_of_the_source_outlives_the_next_but_one(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[str] = set()
    most: list[int] = []
    read = Checkpoint.tensor

    def spy(self: Checkpoint, name: str) -> torch.Tensor:
        tensor = read(self, name)
        alive.add(name)
        most.append(len(alive))
        weakref.finalize(tensor, alive.discard, name)
        return tensor

    monkeypatch.setattr(Checkpoint, "tensor", spy)
    compile_to(tmp_path / "out", source, plan())
    assert len(most) == 39 and max(most) <= 2


def test_progress_counts_the_bytes_of_the_source_up_to_all_of_them(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    compile_to(tmp_path / "out", source, plan(), progress=lambda *step: seen.append(step))
    checkpoint = Checkpoint.open(source)
    total = sum(checkpoint.info(name).nbytes for name in checkpoint.names) + checkpoint.info("model.embed_tokens.weight").nbytes
    assert seen[0][0] == "model.embed_tokens.weight" and seen[-1][1:] == (total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_an_earlier_output_is_replaced_and_anything_else_is_refused(source: Path, tmp_path: Path) -> None:
    out = compile_to(tmp_path / "out", source, plan())
    compile_to(out, source, plan(("16",) * 4, cuts=(1, 2)))
    assert len(list(out.glob("model-stage-*"))) == 3
    (out / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="out: exists and is not a directory that llmpq wrote"):
        compile_to(out, source, plan())
    assert len(list(out.glob("model-stage-*"))) == 3


def test_an_interrupt_leaves_the_earlier_output_as_it_was(source: Path, tmp_path: Path) -> None:
    out = compile_to(tmp_path / "out", source, plan())
    before = contents(out)

    def interrupt(name: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_to(out, source, plan(("w4a16",) * 4), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_to(tmp_path / "new", source, plan(), progress=interrupt)
    assert contents(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def altered(source: Path, directory: Path, name: str, tensor: torch.Tensor) -> Path:
    shutil.copytree(source, directory)
    tensors = load_file(source / "model.safetensors") | {name: tensor}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_a_weight_of_nan_is_named_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    bad = altered(source, tmp_path / "bad", name, torch.full((192, 128), float("nan")))
    with pytest.raises(QuantizationError, match=f"{name}: the weight holds 24576 values that are NaN"):
        compile_to(tmp_path / "out", bad, plan())
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_value_that_the_compute_dtype_cannot_hold_is_named(source: Path, tmp_path: Path) -> None:
    bad = altered(source, tmp_path / "bad", "model.norm.weight", torch.full((128,), 1e6, dtype=torch.bfloat16))
    with pytest.raises(QuantizationError, match=r"model.norm.weight: 128 values are not finite in torch.float16"):
        compile_to(tmp_path / "out", bad, plan(dtype="float16"))


def test_a_checkpoint_of_another_shape_or_already_quantized_is_refused(source: Path, out: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    bad = altered(source, tmp_path / "bad", name, torch.zeros(100, 128))
    with pytest.raises(CheckpointError, match=rf"{name} is \[100, 128\], expected \[192, 128\]"):
        compile_to(tmp_path / "out", bad, plan())
    with pytest.raises(CheckpointError, match="already quantized; compile the original"):
        compile_to(tmp_path / "out", out, plan())


def test_a_stage_that_does_not_exist_or_is_short_is_refused(out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage 2; its stages are 0 to 1"):
        stage_tensors(out, 2)
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    file = copy / "model-stage-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert stage_tensors(copy, 0)
    with pytest.raises(CheckpointError, match=r"model-stage-00001-of-00002.safetensors: truncated: \d+ bytes, expected \d+"):
        stage_tensors(copy, 1)
