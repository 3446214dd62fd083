"""Writing one stage's file: layer by layer, tensors of the source quantized or cast one after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from llmpq.checkpoint.journal import Journal
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.stage_layout import Placement
from llmpq.checkpoint.tensor_file import TensorFile, TensorFileWriter, TensorInfo
from llmpq.errors import QuantizationError
from llmpq.quantization.layer_quantizer import LayerQuantizer, LayerResult
from llmpq.quantization.packing import layout, pack
from llmpq.serialize import to_json


class SourceTensors(Mapping[str, Tensor]):
    """The checkpoint's tensors under their stored names, read when asked for: 16-bit ones cast, others as the source has them."""

    def __init__(self, checkpoint: Checkpoint, placements: Sequence[Placement], dtype: torch.dtype) -> None:
        self.checkpoint, self.dtype = checkpoint, dtype
        self._placements = {placement.name: placement for placement in placements}

    def __getitem__(self, name: str) -> Tensor:
        placement, read = self._placements[name], self.checkpoint.tensor
        if placement.experts > 1:
            parts = [_cast(read(source), source, self.dtype) for source in placement.sources]
            return torch.cat(parts).view(_merged_shape(self.checkpoint, placement))
        (source,) = placement.sources
        found = read(source) if placement.cut is None else placement.cut.of(read(source))
        return found if placement.precision is not None else _cast(found, source, self.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._placements

    def __iter__(self) -> Iterator[str]:
        return iter(self._placements)

    def __len__(self) -> int:
        return len(self._placements)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a stage's file, as they lie there."""

    def __init__(self, path: Path) -> None:
        self._file = TensorFile.open(path)

    def __getitem__(self, name: str) -> Tensor:
        return self._file.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.infos)

    def __len__(self) -> int:
        return len(self._file.infos)


def write_stage(
    path: Path,
    source: SourceTensors,
    stage: tuple[Placement, ...],
    quantizer: LayerQuantizer,
    journal: Journal,
    written: Callable[[Placement], None],
) -> tuple[TensorInfo, ...]:
    """What was written; layers that the journal knows are in the file already. `written` is called after each tensor.

    One tensor of the source is in memory at a time when weights are rounded, one layer when they are calibrated.
    """
    infos = {placement: tuple(stored_infos(source.checkpoint, placement, source.dtype)) for placement in stage}
    kept = {info.name for placement in stage if placement.layer in journal.finished for info in infos[placement]}
    flat = tuple(info for placement in stage for info in infos[placement])
    with TensorFileWriter(path, flat, kept) as writer:
        for layer, group in groupby(stage, key=lambda placement: placement.layer):
            _write_layer(writer, source, layer, tuple(group), quantizer, journal, written)
            if layer is not None:
                quantizer.go_on(layer, StoredTensors(path))
    return flat


def _write_layer(
    writer: TensorFileWriter,
    source: SourceTensors,
    layer: int | None,
    placements: tuple[Placement, ...],
    quantizer: LayerQuantizer,
    journal: Journal,
    written: Callable[[Placement], None],
) -> None:
    """The tensors of one layer, or of what stands before or behind the layers; `written` alone where the journal knows it."""
    if layer in journal.finished:
        for placement in placements:
            written(placement)
        return
    result = LayerResult() if layer is None else quantizer.quantize(layer)
    for placement in placements:
        for name, tensor in _stored(source, placement, result, quantizer):
            writer.write(name, tensor)
        written(placement)
    if layer is not None:
        writer.sync()
        journal.add(layer, to_json(result.report))


def source_bytes(checkpoint: Checkpoint, placement: Placement) -> int:
    if placement.cut is not None:
        return prod(source_shape(checkpoint, placement)) * checkpoint.dtype(placement.sources[0]).itemsize
    return sum(checkpoint.info(source).nbytes for source in placement.sources)


def source_shape(checkpoint: Checkpoint, placement: Placement) -> tuple[int, ...]:
    """Of what is stored, before it is quantized."""
    if placement.experts > 1:
        return _merged_shape(checkpoint, placement)
    whole = checkpoint.shape(placement.sources[0])
    return whole if placement.cut is None else placement.cut.shape(whole)


def stored_infos(checkpoint: Checkpoint, placement: Placement, dtype: torch.dtype) -> Iterator[TensorInfo]:
    """What the tensor becomes on disk, known from its shape alone."""
    source = checkpoint.info(placement.sources[0])
    shape = source_shape(checkpoint, placement)
    if placement.precision is None:
        yield TensorInfo(placement.name, dtype if source.dtype.is_floating_point else source.dtype, shape)
        return
    rows, columns = shape
    for suffix, (stored, shape) in layout(placement.precision, rows, columns, dtype).items():
        yield TensorInfo(f"{placement.module}.{suffix}", stored, shape)


def _merged_shape(checkpoint: Checkpoint, placement: Placement) -> tuple[int, ...]:
    """[experts, rows of one expert, columns]."""
    rows = sum(checkpoint.shape(source)[0] for source in placement.sources)
    return placement.experts, rows // placement.experts, checkpoint.shape(placement.sources[0])[1]


def _stored(
    source: SourceTensors, placement: Placement, result: LayerResult, quantizer: LayerQuantizer
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) as they are written: what was decided for the whole layer, else the source's, rounded or cast."""
    if placement.precision is None:
        changed = result.changed.get(placement.name)
        yield placement.name, source[placement.name] if changed is None else changed
        return
    quantized = result.weights.get(placement.module)
    if quantized is None:
        try:
            quantized = quantizer.round(source[placement.name], placement.precision, source.dtype)
        except QuantizationError as error:
            raise QuantizationError(f"{placement.sources[0]}: {error}") from error
    for suffix, part in pack(quantized).items():
        yield f"{placement.module}.{suffix}", part


def _cast(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    bad = int((~torch.isfinite(cast)).sum())
    if bad:
        raise QuantizationError(f"{name}: {bad} values are not finite in {dtype}; use another compute dtype or repair the source")
    return cast
