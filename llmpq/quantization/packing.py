"""Packing: the tensors that a quantized weight becomes in a compressed-tensors checkpoint, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmpq.errors import CheckpointError
from llmpq.precision import Precision
from llmpq.quantization.grids import code_dtype
from llmpq.quantization.rounding import QuantizedWeight

WORD_BITS = 32
TensorLayout = tuple[torch.dtype, tuple[int, ...]]


def is_packed(precision: Precision) -> bool:
    """Weight-only precisions are packed into words; w8a8 and fp8 keep their codes as they are."""
    return precision.activation_bits == 16


def layout(precision: Precision, out_features: int, in_features: int, scale_dtype: torch.dtype) -> dict[str, TensorLayout]:
    """Suffix -> (dtype, shape) of what `pack` makes of a weight of that size."""
    scale = (scale_dtype, (out_features, in_features // precision.group_size_for(in_features)))
    if not is_packed(precision):
        return {"weight": (code_dtype(precision), (out_features, in_features)), "weight_scale": scale}
    words = -(-in_features * precision.num_bits // WORD_BITS)
    return {
        "weight_packed": (torch.int32, (out_features, words)),
        "weight_scale": scale,
        "weight_shape": (torch.int64, (2,)),
    }


def pack(quantized: QuantizedWeight) -> dict[str, Tensor]:
    """Suffix -> tensor: `weight_packed`, `weight_scale`, `weight_shape` (weight-only) or `weight`, `weight_scale` (w8a8, fp8)."""
    codes, scale = quantized.codes, quantized.scale
    if not is_packed(quantized.precision):
        return {"weight": codes, "weight_scale": scale}
    packed = pack_codes(codes, quantized.precision.num_bits)
    return {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(codes.shape, dtype=torch.int64)}


def unpack(tensors: Mapping[str, Tensor], precision: Precision) -> QuantizedWeight:
    """The inverse of `pack`. Raises CheckpointError when a tensor is missing or its shape contradicts the others."""
    _require_suffixes(tensors, precision)
    if not is_packed(precision):
        return QuantizedWeight(precision, tensors["weight"], tensors["weight_scale"])
    rows, columns = (int(size) for size in tensors["weight_shape"])
    expected = layout(precision, rows, columns, tensors["weight_scale"].dtype)
    for suffix, (dtype, shape) in expected.items():
        found = tensors[suffix]
        if found.dtype != dtype or tuple(found.shape) != shape:
            raise CheckpointError(
                f"{suffix} is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)} for "
                f"{precision.name} [{rows}, {columns}]; compile again"
            )
    return QuantizedWeight(
        precision, unpack_codes(tensors["weight_packed"], precision.num_bits, columns), tensors["weight_scale"]
    )


def suffixes(precision: Precision) -> tuple[str, ...]:
    """Names of the tensors of one quantized module, its bias not counted."""
    return tuple(layout(precision, 1, 1, torch.bfloat16))


def _require_suffixes(tensors: Mapping[str, Tensor], precision: Precision) -> None:
    missing = [suffix for suffix in suffixes(precision) if suffix not in tensors]
    if missing:
        found = ", ".join(sorted(tensors))
        raise CheckpointError(f"{', '.join(missing)} missing, found {found} for {precision.name}; compile again")


def pack_codes(codes: Tensor, num_bits: int) -> Tensor:
    """codes [rows, columns] int8 in [-2^(b-1), 2^(b-1)) as a dense stream of b-bit fields, int32 [rows, ceil(columns * b / 32)].

    Field i of a row starts at bit i * b, counted from the low end, and holds code + 2^(b-1); fields may straddle words, and
    the bits behind the last field are zero (compressed-tensors >= 0.19). Eight fields fill exactly b bytes.
    """
    rows, columns = codes.shape
    fields = torch.zeros(rows, -(-columns // 8), 8, dtype=torch.uint8)
    fields.view(rows, -1)[:, :columns] = (codes + 2 ** (num_bits - 1)).view(torch.uint8)
    octets = torch.zeros(rows, fields.shape[1], dtype=torch.int64)
    for field in range(8):
        octets |= fields[:, :, field].to(torch.int64) << (field * num_bits)
    stream = octets.unsqueeze(-1).view(torch.uint8)[:, :, :num_bits].reshape(rows, -1)
    packed = torch.zeros(rows, -(-columns * num_bits // WORD_BITS) * 4, dtype=torch.uint8)
    filled = min(stream.shape[1], packed.shape[1])
    packed[:, :filled] = stream[:, :filled]
    return packed.view(torch.int32)


def unpack_codes(packed: Tensor, num_bits: int, columns: int) -> Tensor:
    """The inverse of `pack_codes`: int8 [rows, columns]."""
    rows, octets = packed.shape[0], -(-columns // 8)
    stream = packed.contiguous().view(torch.uint8)
    filled = min(stream.shape[1], octets * num_bits)
    padded = torch.zeros(rows, octets * num_bits, dtype=torch.uint8, device=packed.device)
    padded[:, :filled] = stream[:, :filled]
    bytes_of = torch.zeros(rows, octets, 8, dtype=torch.uint8, device=packed.device)
    bytes_of[:, :, :num_bits] = padded.view(rows, octets, num_bits)
    words = bytes_of.view(torch.int64).squeeze(-1)
    codes = torch.empty(rows, octets, 8, dtype=torch.int8, device=packed.device)
    for field in range(8):
        codes[:, :, field] = ((words >> (field * num_bits)) & (2**num_bits - 1)) - 2 ** (num_bits - 1)
    return codes.view(rows, -1)[:, :columns].contiguous()
