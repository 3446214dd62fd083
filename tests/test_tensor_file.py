"""One safetensors file: writing in any order, reading lazily, damage."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmpq.checkpoint.tensor_file import DTYPES, TensorFile, TensorFileWriter, TensorInfo
from llmpq.errors import CheckpointError

DTYPE = st.sampled_from(sorted(DTYPES))
SHAPE = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    count = torch.empty(shape, dtype=dtype).nbytes
    return torch.randint(0, 2, (count,), dtype=torch.uint8).view(dtype).view(shape)


def write(path: Path, tensors: dict[str, torch.Tensor], order: list[str]) -> Path:
    with TensorFileWriter(
        path, [TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    ) as writer:
        for name in order:
            writer.write(name, tensors[name])
    return path


@given(specs=st.lists(st.tuples(DTYPE, SHAPE), max_size=6), data=st.data())
@settings(max_examples=40, deadline=None)
def test_safetensors_and_we_read_what_was_written_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, specs: list[tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    tensors = {f"t{index}": random_tensor(DTYPES[dtype], shape) for index, (dtype, shape) in enumerate(specs)}
    directory = tmp_path_factory.mktemp("files")
    path = write(directory / "a", tensors, data.draw(st.permutations(list(tensors))))
    theirs, file = load_file(path), TensorFile.open(path)
    assert set(theirs) == set(file.infos) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name].view(torch.uint8), tensor.view(torch.uint8)) if tensor.dim() else theirs[name] == tensor
        assert file.tensor(name).shape == tensor.shape and file.infos[name].dtype == tensor.dtype
    assert path.read_bytes() == write(directory / "b", tensors, list(tensors)).read_bytes()


def test_wide_types_are_aligned_behind_odd_numbers_of_bytes(tmp_path: Path) -> None:
    tensors = {"odd": torch.ones(3, dtype=torch.int8), "wide": torch.arange(4)}
    path = write(tmp_path / "f", tensors, ["odd", "wide"])
    raw = path.read_bytes()
    assert raw.index(torch.arange(4).numpy().tobytes()) % 8 == 0
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_whatever_fills_lines_of_the_cache_begins_on_one(tmp_path: Path) -> None:
    small, large = torch.tensor([24, 256]), [torch.full((3, 64), value, dtype=torch.bfloat16) for value in (1.0, 2.0)]
    tensors = {"shape": small, "a": large[0], "odd": torch.ones(3, dtype=torch.int8), "b": large[1]}
    raw = write(tmp_path / "f", tensors, list(tensors)).read_bytes()
    assert [raw.index(tensor.view(torch.uint8).numpy().tobytes()) % 64 for tensor in large] == [0, 0]


def test_a_file_that_lacks_a_tensor_is_not_closed_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never written: b"):
        write(tmp_path / "f", {"a": torch.ones(1), "b": torch.ones(1)}, ["a"])


def test_a_tensor_of_another_shape_than_announced_is_refused(tmp_path: Path) -> None:
    writer = TensorFileWriter(tmp_path / "f", [TensorInfo("a", torch.float32, (2,))])
    with pytest.raises(ValueError, match=r"a: torch.float32 \(3,\), announced as torch.float32 \(2,\)"), writer:
        writer.write("a", torch.ones(3))


DAMAGE = {
    "truncated: ": lambda raw: raw[:-1],
    "corrupt: .* bytes, its header promises": lambda raw: raw + b"x",
    "cannot hold a header of": lambda raw: raw[:5],
    "cannot hold a header of 18446744073709551615": lambda raw: b"\xff" * 8 + raw[8:],
    "its header is not JSON": lambda raw: raw[:8] + b"!" * 4 + raw[12:],
    "tensor a is described as": lambda raw: raw.replace(b'"F32"', b'"F33"'),
    "tensor a has 16 bytes, expected 64": lambda raw: raw.replace(b"[2,2]", b"[2,8]"),
    "tensor a is described as .*'shape': 2": lambda raw: raw.replace(b"[2,2]", b"2    "),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damage_is_reported_with_file_reason_and_remedy_before_any_tensor_is_read(tmp_path: Path, message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, 2)}, path)
    path.write_bytes(DAMAGE[message](path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"model.safetensors: .*{message}.*; copy or download the file again"):
        TensorFile.open(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: missing"):
        TensorFile.open(tmp_path / "nowhere")
