"""Opening a Hugging Face directory: one file, shards, and everything that can be wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmpq.checkpoint.reader import Checkpoint
from llmpq.errors import CheckpointError
from tests.tiny_checkpoint import llama, save_llama


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_one_file_and_shards_hold_the_tensors_of_the_model(tmp_path: Path, shard: str) -> None:
    checkpoint = Checkpoint.open(save_llama(tmp_path / "m", tied=False, shard=shard))
    expected = llama(tied=False).state_dict()
    assert (len(list((tmp_path / "m").glob("*.safetensors"))) > 1) == (shard == "100KB")
    assert set(checkpoint.names) == set(expected)
    for name, tensor in expected.items():
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == (tuple(tensor.shape), torch.bfloat16)
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor missing among 2"):
        Checkpoint.open(small(tmp_path)).tensor("missing")


def small(directory: Path) -> Path:
    (directory / "config.json").write_text("{}")
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, directory / "part.safetensors")
    index = {"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def rewrite_index(weight_map: object) -> Callable[[Path], object]:
    return lambda path: (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def remove(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).unlink()


def pickled(path: Path) -> None:
    (path / "model.safetensors.index.json").unlink()
    (path / "pytorch_model.bin").write_bytes(b"")


def truncated(path: Path) -> None:
    raw = (path / "part.safetensors").read_bytes()
    (path / "part.safetensors").write_bytes(raw[: len(raw) // 2])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "config.json: missing": remove("config.json"),
    "config.json: not JSON": lambda path: (path / "config.json").write_text("{"),
    "config.json: found a list, expected a JSON object": lambda path: (path / "config.json").write_text("[]"),
    "no weights; expected model.safetensors": remove("model.safetensors.index.json"),
    "part.safetensors: missing": remove("part.safetensors"),
    "part.safetensors: truncated": truncated,
    "only in pytorch_model.bin; .*unpickling can run code; convert once": pickled,
    "no tensor c, which model.safetensors.index.json promises": rewrite_index({"c": "part.safetensors"}),
    "no weight_map of names to files": rewrite_index(None),
    "names the file '../part.safetensors', expected one beside it": rewrite_index({"a": "../part.safetensors"}),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_cannot_be_read_is_reported_in_one_line_and_exit_2(tmp_path: Path, message: str) -> None:
    DAMAGE[message](small(tmp_path))
    with pytest.raises(CheckpointError, match=message) as raised:
        Checkpoint.open(tmp_path)
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value)


def test_a_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        Checkpoint.open(tmp_path / "nowhere")
