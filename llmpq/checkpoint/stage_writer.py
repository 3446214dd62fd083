"""Writing one stage's file: tensors of the source, quantized or cast one after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.stage_layout import Placement
from llmpq.checkpoint.tensor_file import TensorFileWriter, TensorInfo
from llmpq.errors import QuantizationError
from llmpq.quantization.packing import layout, pack
from llmpq.quantization.rounding import quantize


def write_stage(
    path: Path,
    checkpoint: Checkpoint,
    stage: tuple[Placement, ...],
    dtype: torch.dtype,
    written: Callable[[Placement], None],
) -> tuple[TensorInfo, ...]:
    """What was written; one tensor of the source is in memory at a time. `written` is called after each of them."""
    infos = tuple(info for placement in stage for info in stored_infos(checkpoint, placement, dtype))
    with TensorFileWriter(path, infos) as writer:
        for placement in stage:
            for name, tensor in _stored(checkpoint, placement, dtype):
                writer.write(name, tensor)
            written(placement)
    return infos


def source_bytes(checkpoint: Checkpoint, placement: Placement) -> int:
    return sum(checkpoint.info(source).nbytes for source in placement.sources)


def stored_infos(checkpoint: Checkpoint, placement: Placement, dtype: torch.dtype) -> Iterator[TensorInfo]:
    """What the tensor becomes on disk, known from its shape alone."""
    source = checkpoint.info(placement.sources[0])
    if placement.precision is None:
        shape = _merged_shape(checkpoint, placement) if placement.experts > 1 else source.shape
        yield TensorInfo(placement.name, dtype if source.dtype.is_floating_point else source.dtype, shape)
        return
    rows, columns = source.shape
    for suffix, (stored, shape) in layout(placement.precision, rows, columns, dtype).items():
        yield TensorInfo(f"{placement.module}.{suffix}", stored, shape)


def _merged_shape(checkpoint: Checkpoint, placement: Placement) -> tuple[int, ...]:
    """[experts, rows of one expert, columns]."""
    rows = sum(checkpoint.shape(source)[0] for source in placement.sources)
    return placement.experts, rows // placement.experts, checkpoint.shape(placement.sources[0])[1]


def _stored(checkpoint: Checkpoint, placement: Placement, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    if placement.experts > 1:
        parts = [_cast(checkpoint.tensor(source), source, dtype) for source in placement.sources]
        yield placement.name, torch.cat(parts).view(_merged_shape(checkpoint, placement))
        return
    (source,) = placement.sources
    tensor = checkpoint.tensor(source)
    if placement.precision is None:
        yield placement.name, _cast(tensor, source, dtype)
        return
    try:
        packed = pack(quantize(tensor, placement.precision, dtype))
    except QuantizationError as error:
        raise QuantizationError(f"{source}: {error}") from error
    for suffix, part in packed.items():
        yield f"{placement.module}.{suffix}", part


def _cast(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    bad = int((~torch.isfinite(cast)).sum())
    if bad:
        raise QuantizationError(f"{name}: {bad} values are not finite in {dtype}; use another compute dtype or repair the source")
    return cast
