"""The manifest, and what verification finds in a damaged output directory."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmpq.checkpoint.manifest import Manifest, check_size, is_output, problems, sha256, verify
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.shards import write_shards
from llmpq.errors import CheckpointError
from tests.tiny_checkpoint import graph, plan, save_llama

STAGE = "model-stage-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("manifest")
    source = save_llama(directory / "tiny")
    write_shards(directory / "out", Checkpoint.open(source), graph(), plan(), assets=source, build={"seconds": 1})
    return Path(directory / "out")


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def test_a_fresh_output_is_sound_and_its_manifest_lists_every_file_but_three(out: Path) -> None:
    (out / "report.html").write_text("<html>")
    manifest = verify(out)
    assert set(manifest.files) == {path.name for path in out.iterdir()} - {"manifest.json", "build.json", "report.html"}
    assert manifest.engines["transformers"] is True and "w8a16" in str(manifest.engines["vllm-cpu"])
    assert is_output(out) and not is_output(out.parent)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cuts", [(), (2,)])
def test_outputs_of_one_and_two_stages_tied_or_not_are_sound(tmp_path: Path, tied: bool, cuts: tuple[int, ...]) -> None:
    source = save_llama(tmp_path / "tiny", tied)
    write_shards(tmp_path / "out", Checkpoint.open(source), graph(tied), plan(cuts=cuts), assets=source, build={})
    assert problems(tmp_path / "out") == ()


def flip_last_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


DAMAGE: dict[str, Callable[[Path], object]] = {
    r": missing, expected \d+ bytes": Path.unlink,
    r": truncated: \d+ bytes, expected \d+": shorten,
    r": altered: \d+ bytes, expected \d+": lengthen,
    r": altered: sha256 \w{12}…, expected \w{12}…": flip_last_byte,
}


@pytest.mark.parametrize("message", DAMAGE)
@pytest.mark.parametrize("name", [STAGE, "config.json", "tokenizer.json", "plan.json"])
def test_a_damaged_file_is_named_with_what_was_found_and_expected(out: Path, name: str, message: str) -> None:
    DAMAGE[message](out / name)
    with pytest.raises(CheckpointError, match=f"{name}{message}; compile again or copy the file again") as raised:
        verify(out)
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)


def test_all_damaged_files_are_reported_at_once(out: Path) -> None:
    shorten(out / STAGE)
    (out / "config.json").unlink()
    assert [line.split(":")[0].rpartition("/")[2] for line in problems(out)] == ["config.json", STAGE]


def test_the_cheap_check_sees_the_size_and_not_the_bytes(out: Path) -> None:
    flip_last_byte(out / STAGE)
    check_size(out, STAGE)
    lengthen(out / STAGE)
    with pytest.raises(CheckpointError, match="altered"):
        check_size(out, STAGE)
    with pytest.raises(CheckpointError, match=r"other: not in manifest.json"):
        check_size(out, "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "format None, expected 'llmpq-manifest-1'"),
        ('{"format": "llmpq-manifest-1"}', "no files or engines"),
        ("[", "not JSON"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(out: Path, text: str, message: str) -> None:
    (out / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        verify(out)


def test_the_checksum_is_that_of_hashlib_over_many_reads(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "abc").write_bytes(b"a" * 1_000_000 + b"a" * 1_000_000)
    assert sha256(tmp_path / "abc") != sha256(tmp_path / "empty")


def seal(out: Path) -> None:
    """A manifest that agrees with the bytes as they are."""
    Manifest.of(out, {}).write(out)


def edit_tensors(out: Path, name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(out / name)
    edit(tensors)
    save_file(tensors, out / name, {"format": "pt"})


def edit_json(out: Path, name: str, *path: str, value: object) -> None:
    parsed = json.loads((out / name).read_text())
    inner = parsed
    for key in path[:-1]:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[path[-1]] = value
    (out / name).write_text(json.dumps(parsed))


def move_layer_2_to_stage_0(out: Path) -> None:
    edit_json(out, "plan.json", "pipelines", "0", "stages", "0", "options", value=["w8a8", "w8a16", "w4a16"])
    edit_json(out, "plan.json", "pipelines", "0", "stages", "1", "options", value=["16"])
    edit_json(out, "plan.json", "pipelines", "0", "stages", "1", "first_layer", value=3)


UP = "model.layers.2.mlp.up_proj"
CONTRADICTION: dict[str, Callable[[Path], None]] = {
    f"{UP} is w4a16, plan.json says w8a16": lambda out: edit_json(
        out, "plan.json", "pipelines", "0", "stages", "1", "options", value=["w8a16", "16"]
    ),
    f"holds {UP}.weight_packed, expected in model-stage-00000": move_layer_2_to_stage_0,
    f"no tensor {UP}.weight_scale, which model.safetensors.index.json promises": lambda out: edit_tensors(
        out, STAGE, lambda tensors: tensors.pop(f"{UP}.weight_scale")
    ),
    rf"{UP}.weight_scale: torch.bfloat16 \[1, 1\], expected torch.bfloat16 \[192, 1\]": lambda out: edit_tensors(
        out, STAGE, lambda tensors: tensors.update({f"{UP}.weight_scale": torch.ones(1, 1, dtype=torch.bfloat16)})
    ),
    f"{UP}.weight_scale: holds values that are not positive and finite": lambda out: edit_tensors(
        out, STAGE, lambda tensors: tensors[f"{UP}.weight_scale"].zero_()
    ),
    "model.norm.weight is torch.float32, expected bfloat16": lambda out: edit_tensors(
        out, STAGE, lambda tensors: tensors.update({"model.norm.weight": torch.ones(128)})
    ),
    r"model.norm.weight: \[64\], config.json says \[128\]": lambda out: edit_tensors(
        out, STAGE, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)})
    ),
    "model.layers.4.input_layernorm.weight: missing, config.json expects it": lambda out: edit_json(
        out, "config.json", "num_hidden_layers", value=5
    ),
    "model.layers.3.input_layernorm.weight: config.json knows no such tensor": lambda out: edit_json(
        out, "config.json", "num_hidden_layers", value=3
    ),
}


@pytest.mark.parametrize("message", CONTRADICTION)
def test_files_that_contradict_each_other_are_found_even_when_the_checksums_agree(out: Path, message: str) -> None:
    CONTRADICTION[message](out)
    seal(out)
    with pytest.raises(CheckpointError, match=message):
        verify(out)
