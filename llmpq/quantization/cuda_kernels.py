"""CUDA kernels: torch's products of int4 and int8 weights, and which linears on which cards they take. Not yet run on a card."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from llmpq.precision import Precision
from llmpq.quantization.marlin_kernel import marlin_kernel, takes_marlin
from llmpq.quantization.rounding import QuantizedWeight, activation_codes

Capability = tuple[int, int]
# What torch's operators ask for (aten/src/ATen/native/cuda: int4mm.cu, Blas.cpp): tiles of 8 x 16, int8 from Turing on.
INT4_CAPABILITY, INT8_CAPABILITY = (8, 0), (7, 5)
INT4_GROUPS = (32, 64, 128, 256)
TILE_ROWS, TILE_COLUMNS, LANES = 8, 16, 32
INT8_MULTIPLE = 8  # of rows and of columns
INT8_MOST_REFUSED, INT8_PADDED = 16, 32  # so few tokens are refused; padded to so many
# Up to which int4's product beats dequantizing: 7 times at 16, 1.08 at 128 tokens on an A6000 (torchao/prototype/hqq/README.md).
INT4_FEW_TOKENS = 128


class CardKernel(Protocol):
    """A product of packed weights on a card, and the layout of codes and scales that it takes."""

    def prepack(self, packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """packed [rows, words] int32 of `llmpq.quantization.packing`, scale [rows, groups] -> both in its layout, no larger."""
        ...

    def product(self, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [tokens, columns] -> [tokens, rows] in x's dtype, which is scale's; tiles and scale of `prepack`."""
        ...


@dataclass(frozen=True, slots=True)
class Int4Kernel:
    """w4a16 by `_weight_int4pack_mm`: tiles of the tensor cores, `inner_tiles` of them along the columns beside each other."""

    few_tokens: ClassVar[int] = INT4_FEW_TOKENS
    precision: Precision
    inner_tiles: int

    def prepack(self, packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """packed [rows, words] int32 -> tiles; scale [rows, groups] as it is."""
        tiles: Tensor = torch.ops.aten._convert_weight_to_int4pack(swapped_nibbles(packed), self.inner_tiles)
        return tiles, scale

    def product(self, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [tokens, columns] bfloat16 -> [tokens, rows]; scale [rows, groups] bfloat16; many tokens by the dequantized weight.

        The operator wants a zero point beside every scale. They are put there per call: kept, they would double the scales.
        """
        if len(x) > self.few_tokens:
            return functional.linear(x, self.dequantized(tiles, scale, x.dtype), bias)
        beside = torch.stack((scale.t(), torch.zeros_like(scale.t())), dim=-1).contiguous()
        group = x.shape[1] // scale.shape[1]
        y: Tensor = torch.ops.aten._weight_int4pack_mm(x.contiguous(), tiles, group, beside)
        return y if bias is None else y + bias

    def dequantized(self, tiles: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight [rows, columns]."""
        return QuantizedWeight(self.precision, codes_of_tiles(tiles), scale).dequantize(dtype)


def capability_of(device: torch.device) -> Capability:
    """Of an NVIDIA card; (0, 0) of every other device: AMD's cards have other tiles."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_capability(device) if is_nvidia else (0, 0)


def card_kernel(precision: Precision, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> CardKernel | None:
    """What multiplies a weight-only linear of that size on a card: torch's int4 product, else gptqmodel's Marlin, else None."""
    capability = capability_of(device)
    int4 = int4_kernel(precision, rows, columns, dtype, capability)
    if int4 is not None or not takes_marlin(precision, rows, columns, dtype, capability):
        return int4
    return marlin_kernel(precision, dtype, device)


def int4_kernel(precision: Precision, rows: int, columns: int, dtype: torch.dtype, capability: Capability) -> Int4Kernel | None:
    """The kernel for a weight-only linear of that size on a card, None where torch has none."""
    fits = rows % TILE_ROWS == 0 and precision.group_size_for(columns) in INT4_GROUPS and dtype == torch.bfloat16
    if precision.name != "w4a16" or capability < INT4_CAPABILITY or not fits:
        return None
    inner = next((tiles for tiles in (8, 4, 2) if columns % (tiles * TILE_COLUMNS) == 0), None)
    return None if inner is None else Int4Kernel(precision, inner)


def takes_int8(precision: Precision, rows: int, columns: int, capability: Capability) -> bool:
    """Whether `_int_mm` takes a w8a8 linear of that size on a card."""
    fits = rows % INT8_MULTIPLE == 0 and columns % INT8_MULTIPLE == 0
    return precision.name == "w8a8" and capability >= INT8_CAPABILITY and fits


def int8_product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [tokens, columns] -> [tokens, rows] in x's dtype; codes [rows, columns] int8, scale [rows, 1]: the definition of w8a8."""
    rounded, step = activation_codes(x)
    few = len(x) if len(x) > INT8_MOST_REFUSED else INT8_PADDED
    padded = functional.pad(rounded.to(torch.int8), (0, 0, 0, few - len(x)))
    sums = torch._int_mm(padded, codes.t()).narrow(0, 0, len(x))
    y = sums.to(torch.float32) * scale.t().to(torch.float32) * step
    return (y if bias is None else y + bias).to(x.dtype)


def swapped_nibbles(packed: Tensor) -> Tensor:
    """packed [rows, words] int32, bytes with the even column of a pair low -> [rows, columns / 2] uint8 with it high."""
    stream = packed.contiguous().view(torch.uint8)
    return (stream << 4) | (stream >> 4)


def codes_of_tiles(tiles: Tensor) -> Tensor:
    """tiles [rows / 8, columns / (16 t), 32, t / 2] int32 -> codes [rows, columns] int8 in [-8, 8).

    A lane's word holds eight columns of one of eight rows: lane 4 r + q, byte pairs q, q + 4, q + 8, q + 12 of 32 columns; first
    the even columns, then the odd ones (matrix_to_m16n8k16_Bint4_layout in int4mm.cu).
    """
    blocks, outer, _, words = tiles.shape
    octets = tiles.contiguous().view(torch.uint8)
    fields = torch.stack((octets & 15, octets >> 4), dim=-1)
    lanes = fields.view(blocks, outer, TILE_ROWS, 4, words, 2, 4)  # .., row, q, word, odd, pair of bytes
    ordered = lanes.permute(0, 2, 1, 4, 6, 3, 5).reshape(blocks * TILE_ROWS, -1)
    return ordered.to(torch.int8) - 8
