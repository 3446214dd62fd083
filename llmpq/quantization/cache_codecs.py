"""Cache codecs: how keys and values are held in a KV cache, and what attention sees of them."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from llmpq.precision import CachePrecision
from llmpq.quantization.cache_kernel import cache_kernel

Encoded = tuple[Tensor, ...]  # [..., elements] each, the leading dimensions those of what was encoded
INT8_STEPS = 127  # of the largest magnitude of a head's vector: vLLM's int8_per_token_head
FP8_LARGEST = 448.0  # of e4m3; beyond it values are cut off, as vLLM's kernels do


class CacheCodec(Protocol):
    """Keys or values [..., dim] of a token and head as one tensor or several."""

    def layout(self, dim: int, dtype: torch.dtype) -> tuple[tuple[torch.dtype, int], ...]:
        """(dtype, elements per head and token) of what `encode` makes of vectors of `dim` in the stage's `dtype`."""
        ...

    def encode(self, x: Tensor) -> Encoded: ...

    def decode(self, encoded: Encoded, dtype: torch.dtype) -> Tensor:
        """What attention sees, [..., dim]."""
        ...


class Sixteen:
    """As they are, in the stage's dtype."""

    def layout(self, dim: int, dtype: torch.dtype) -> tuple[tuple[torch.dtype, int], ...]:
        return ((dtype, dim),)

    def encode(self, x: Tensor) -> Encoded:
        return (x,)

    def decode(self, encoded: Encoded, dtype: torch.dtype) -> Tensor:
        return encoded[0]


class Int8:
    """Codes in [-127, 127] and an fp32 scale for each token and head, whose value the stage's dtype holds exactly.

    Error: at most half a scale, absmax / 254, for the largest values up to half a scale more than rounding the scale took away;
    scales are normal numbers of the dtype, which matters to float16 alone.
    """

    def layout(self, dim: int, dtype: torch.dtype) -> tuple[tuple[torch.dtype, int], ...]:
        return (torch.int8, dim), (torch.float32, 1)

    def encode(self, x: Tensor) -> Encoded:
        wide = x.to(torch.float32)
        scale = (wide.abs().amax(-1, keepdim=True) / INT8_STEPS).to(x.dtype)
        scale = scale.clamp(min=torch.finfo(x.dtype).tiny).to(torch.float32)
        codes = (wide / scale).round_().clamp_(-INT8_STEPS, INT8_STEPS)
        return codes.to(torch.int8), scale

    def decode(self, encoded: Encoded, dtype: torch.dtype) -> Tensor:
        (codes, scale), kernel = encoded, cache_kernel()
        if kernel is not None and kernel.accepts(codes, scale, dtype):
            return kernel.read(codes, scale)
        return codes.to(dtype).mul_(scale.to(dtype))


class Fp8:
    """Rounded to e4m3 without a scale, which is what vLLM's `fp8` does with a checkpoint that brings none."""

    def layout(self, dim: int, dtype: torch.dtype) -> tuple[tuple[torch.dtype, int], ...]:
        return ((torch.uint8, dim),)

    def encode(self, x: Tensor) -> Encoded:
        return (x.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).view(torch.uint8),)

    def decode(self, encoded: Encoded, dtype: torch.dtype) -> Tensor:
        return encoded[0].view(torch.float8_e4m3fn).to(dtype)


CODECS: dict[CachePrecision, CacheCodec] = {"16": Sixteen(), "int8": Int8(), "fp8": Fp8()}


def as_cached(x: Tensor, precision: CachePrecision) -> Tensor:
    """What attention sees of keys or values [..., dim] that were cached at that precision, in their dtype."""
    codec = CODECS[precision]
    return codec.decode(codec.encode(x), x.dtype)


@dataclass(frozen=True, slots=True)
class Held:
    """Keys or values of a layer in slots: tensors [slots, heads, positions, elements] of a codec, read in `dtype`."""

    EVERYTHING: ClassVar[tuple[slice, ...]] = (slice(None), slice(None), slice(None))

    codec: CacheCodec
    dtype: torch.dtype
    tensors: Encoded

    def write(self, place: tuple[slice | Tensor, ...], encoded: Encoded) -> None:
        """place: of slots, heads and positions."""
        for tensor, new in zip(self.tensors, encoded):
            tensor[place] = new

    def read(self, place: tuple[slice | Tensor, ...] = EVERYTHING) -> Tensor:
        """What attention sees, [slots, heads, positions, dim]."""
        return self.codec.decode(tuple(tensor[place] for tensor in self.tensors), self.dtype)

    def part(self, first: int, number: int) -> "Held":
        """So many slots, the same memory."""
        return Held(self.codec, self.dtype, tuple(tensor[first : first + number] for tensor in self.tensors))

    def move(self, source: int, target: int, positions: int) -> None:
        for tensor in self.tensors:
            tensor[target, :, :positions] = tensor[source, :, :positions]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)
