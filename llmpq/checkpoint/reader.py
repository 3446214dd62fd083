"""Checkpoint: a Hugging Face directory as a configuration and lazily read tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmpq.checkpoint.tensor_file import COPY_AGAIN, TensorFile, TensorInfo
from llmpq.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by name, each in one of the files; nothing but headers is read until `tensor` is called."""

    directory: Path
    config: Mapping[str, Any]
    files: Mapping[str, TensorFile]

    @classmethod
    def open(cls, directory: Path | str) -> "Checkpoint":
        """A directory with config.json and model.safetensors, or the shards of model.safetensors.index.json.

        Raises CheckpointError that names the file which is missing, truncated, corrupt or pickled.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; give the directory of a Hugging Face model")
        config = read_json(directory / CONFIG_FILE)
        return cls(directory, config, _open_files(directory))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def info(self, name: str) -> TensorInfo:
        return self._file(name).infos[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.info(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self.info(name).dtype

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, memory-mapped: pages are read when they are touched."""
        return self._file(name).tensor(name)

    def _file(self, name: str) -> TensorFile:
        if name not in self.files:
            raise CheckpointError(f"{self.directory}: no tensor {name} among {len(self.files)}; is config.json of another model?")
        return self.files[name]


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; CheckpointError when it is missing or not a JSON object."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {COPY_AGAIN}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}; {COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found a {type(value).__name__}, expected a JSON object; {COPY_AGAIN}")
    return value


def _open_files(directory: Path) -> dict[str, TensorFile]:
    if (directory / INDEX_FILE).is_file():
        return _open_index(directory)
    if (directory / SINGLE_FILE).is_file():
        file = TensorFile.open(directory / SINGLE_FILE)
        return dict.fromkeys(file.infos, file)
    pickled = [name for name in PICKLED if (directory / name).is_file()]
    if pickled:
        raise CheckpointError(
            f"{directory}: the weights are only in {pickled[0]}; llmpq reads safetensors alone, because unpickling can run code; "
            "convert once with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise CheckpointError(f"{directory}: no weights; expected {SINGLE_FILE} or {INDEX_FILE}; {COPY_AGAIN}")


def _open_index(directory: Path) -> dict[str, TensorFile]:
    weight_map = read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{directory / INDEX_FILE}: no weight_map of names to files; {COPY_AGAIN}")
    opened = {name: TensorFile.open(directory / _plain(directory, name)) for name in dict.fromkeys(weight_map.values())}
    for tensor, name in weight_map.items():
        if tensor not in opened[name].infos:
            raise CheckpointError(f"{directory / name}: no tensor {tensor}, which {INDEX_FILE} promises; {COPY_AGAIN}")
    return {tensor: opened[name] for tensor, name in weight_map.items()}


def _plain(directory: Path, name: str) -> str:
    """`name`, which must lie in the directory itself."""
    if Path(name).name != name:
        raise CheckpointError(f"{directory / INDEX_FILE}: names the file {name!r}, expected one beside it; {COPY_AGAIN}")
    return name
