"""TensorFile: one safetensors file, its header parsed and checked, its tensors read or written one at a time."""

import json
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor

from llmpq.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PREFIX_BYTES = 8  # little-endian length of the header
LINE_BYTES = 64  # of a cache line, and of the widest vectors
COPY_AGAIN = "copy or download the file again"
LARGEST_HEADER = 100_000_000  # bytes; the safetensors library refuses more


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, type and shape of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A safetensors file whose header agrees with its size."""

    path: Path
    infos: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """The file at `path`, no tensor read yet. Raises CheckpointError for one that is missing, truncated or corrupt."""
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {COPY_AGAIN}")
        header, start = _read_header(path)
        infos: dict[str, TensorInfo] = {}
        end = 0
        for name, entry in header.items():
            if name != "__metadata__":
                infos[name], stop = _parse_entry(path, name, entry)
                end = max(end, stop)
        size = path.stat().st_size
        if size != start + end:
            what = "truncated" if size < start + end else "corrupt"
            raise CheckpointError(f"{path}: {what}: {size} bytes, its header promises {start + end}; {COPY_AGAIN}")
        return cls(path, infos)

    def tensor(self, name: str) -> Tensor:
        """The tensor, memory-mapped: pages are read when they are touched."""
        with safe_open(self.path, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and the offset at which the data starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(PREFIX_BYTES), "little")
        if size < PREFIX_BYTES or length > min(size - PREFIX_BYTES, LARGEST_HEADER):
            raise CheckpointError(
                f"{path}: truncated or not safetensors: {size} bytes cannot hold a header of {length}; {COPY_AGAIN}"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: corrupt: its header is not JSON; {COPY_AGAIN}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: corrupt: its header is not an object; {COPY_AGAIN}")
    return header, PREFIX_BYTES + length


def _parse_entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, int]:
    """The tensor and the end of its bytes, relative to the data."""
    try:
        dtype = DTYPES[entry["dtype"]]
        info = TensorInfo(name, dtype, tuple(int(size) for size in entry["shape"]))
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: corrupt: tensor {name} is described as {entry!r}; {COPY_AGAIN}") from error
    if begin < 0 or end - begin != info.nbytes:
        raise CheckpointError(f"{path}: corrupt: tensor {name} has {end - begin} bytes, expected {info.nbytes}; {COPY_AGAIN}")
    return info, end


class TensorFileWriter:
    """Writes a safetensors file whose header comes first and whose tensors follow one at a time, in any order.

    The bytes depend on the tensors alone: those first that leave what follows on a line of the cache, wide types first of the
    others, then the order of `infos`. Mapped into memory, no vector of what is large straddles two lines.
    Use as a context manager; leaving it without an error requires that every tensor was written. `kept`: tensors that an earlier
    writer of the same `infos` has written to the file.
    """

    def __init__(self, path: Path, infos: Iterable[TensorInfo], kept: Container[str] = ()) -> None:
        ordered = sorted(infos, key=lambda info: (info.nbytes % LINE_BYTES != 0, -info.dtype.itemsize))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        self._missing: dict[str, tuple[TensorInfo, int]] = {}
        for info in ordered:
            span = [offset, offset + info.nbytes]
            header[info.name] = {"dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": span}
            if info.name not in kept:
                self._missing[info.name] = (info, offset)
            offset += info.nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-(PREFIX_BYTES + len(raw)) % LINE_BYTES)
        self.path = path
        self._start = PREFIX_BYTES + len(raw)
        self._file = path.open("r+b" if len(self._missing) < len(ordered) else "wb")
        self._file.write(len(raw).to_bytes(PREFIX_BYTES, "little") + raw)
        self._file.truncate(self._start + offset)

    def write(self, name: str, tensor: Tensor) -> None:
        info, offset = self._missing.pop(name)
        if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, announced as {info.dtype} {info.shape}")
        self._file.seek(self._start + offset)
        self._file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def sync(self) -> None:
        """What was written so far is on the disk for good."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._missing:
            raise ValueError(f"{self.path}: never written: {', '.join(self._missing)}")
