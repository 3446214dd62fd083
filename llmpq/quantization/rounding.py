"""QuantizedWeight: a weight as signed integer codes and scales, and rounding to nearest that makes one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.errors import QuantizationError
from llmpq.pieces import piece_rows
from llmpq.precision import Precision
from llmpq.quantization.grids import FP8_LARGEST, code_dtype, edge, nearest

ACTIVATION_STEPS = 127  # absmax is this many steps of the grid, in vLLM's dynamic per-token int8 kernels


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """codes [out_features, in_features] int8 in [-2^(b-1), 2^(b-1)), or e4m3; scale [out_features, in_features / group] float."""

    precision: Precision
    codes: Tensor
    scale: Tensor

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scale.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """codes * scale, [out_features, in_features]; exact in fp32, rounded once to a narrower `dtype`."""
        grouped = self.codes.view(*self.scale.shape, -1).to(torch.float32)
        return grouped.mul_(self.scale.to(torch.float32).unsqueeze(-1)).flatten(1).to(dtype)


def quantize(weight: Tensor, precision: Precision, scale_dtype: torch.dtype = torch.bfloat16) -> QuantizedWeight:
    """Round to nearest on a symmetric grid, one scale per group of columns (weight-only) or per row (w8a8, fp8).

    weight: [out_features, in_features], float and finite.
    scale = absmax / ((2^b - 1) / 2), of fp8 absmax / 448, as compressed-tensors has it, rounded to `scale_dtype` before the codes
    are chosen, so that they are the nearest ones for the scale that is stored. Error: at most half a scale, for the largest
    positive values up to half a scale more than that rounding took away. Rows of zeros get the smallest normal scale.
    Raises QuantizationError for a weight that is not a finite float matrix, or whose scale `scale_dtype` cannot hold.
    """
    require_quantizable(weight, precision)
    group_size = precision.group_size_for(weight.shape[1])
    absmax = weight.detach().to(torch.float32).reshape(weight.shape[0], -1, group_size).abs().amax(dim=-1)
    return round_to(weight, precision, stored_scale(absmax, precision, scale_dtype))


def round_to(weight: Tensor, precision: Precision, scale: Tensor) -> QuantizedWeight:
    """The nearest codes on the grid of given scales, [out_features, groups]."""
    grouped = weight.detach().to(torch.float32).reshape(*scale.shape, -1)
    codes = nearest(grouped / scale.to(torch.float32).unsqueeze(-1), precision)
    return QuantizedWeight(precision, codes.flatten(1).to(code_dtype(precision)), scale)


def require_quantizable(weight: Tensor, precision: Precision) -> None:
    """Raises QuantizationError for a weight that is not a finite float matrix, or a precision without codes."""
    if not precision.is_quantized:
        raise QuantizationError(f"precision {precision.name!r} has no codes; choose w8a8, w8a16, w4a16, w3a16 or fp8")
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise QuantizationError(f"found a weight {list(weight.shape)} of {weight.dtype}, expected a float matrix [out, in]")
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise QuantizationError(f"the weight holds {bad} values that are NaN or infinite; repair the source checkpoint")


def stored_scale(absmax: Tensor, precision: Precision, dtype: torch.dtype) -> Tensor:
    """The scale that puts `absmax` at the edge of the grid, in `dtype`, positive; QuantizationError when it is not finite."""
    scale: Tensor = (absmax / edge(precision)).to(dtype)
    if not bool(torch.isfinite(scale).all()):
        raise QuantizationError(f"values up to {float(absmax.max()):.3g} need a scale beyond {dtype}; use bfloat16")
    return scale.clamp(min=torch.finfo(dtype).tiny)


def quantize_activation_per_token(x: Tensor) -> Tensor:
    """`x` rounded to 8 bits, symmetric, one dynamic scale per token (last dimension), in x's dtype.

    scale = absmax / 127 in fp32: what vLLM's int8 kernels do. compressed-tensors in transformers divides by 127.5 in the
    model's dtype instead, so the two differ by rounding noise.
    """
    codes, scale = activation_codes(x)
    return (codes * scale).to(x.dtype)


def activation_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of `quantize_activation_per_token`, float32 like x, and the scale of every token, [..., 1]."""
    wide = x.to(torch.float32)
    scale = (wide.abs().amax(dim=-1, keepdim=True) / ACTIVATION_STEPS).clamp(min=torch.finfo(torch.float32).tiny)
    return (wide / scale).round_().clamp_(-128, 127), scale


def codes_by_pieces(x: Tensor, codes: Tensor, zero_point: int) -> Tensor:
    """The same codes of x [tokens, columns] plus `zero_point` into `codes`, uint8; returns the scales, [tokens, 1] fp32."""
    scale, together = torch.empty(len(x), 1, dtype=torch.float32), piece_rows(*x.shape)
    for some, to, of_some in zip(torch.split(x, together), torch.split(codes, together), torch.split(scale, together)):
        found, step = activation_codes(some)
        to.copy_(found.add_(zero_point))
        of_some.copy_(step)
    return scale


def quantize_activation_fp8(x: Tensor) -> Tensor:
    """`x` rounded to e4m3, one dynamic scale per token, absmax / 448 in fp32, in x's dtype."""
    largest = x.abs().amax(dim=-1, keepdim=True).to(torch.float32)
    scale = (largest / FP8_LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    rounded: Tensor = (x / scale).to(torch.float8_e4m3fn).to(torch.float32).mul_(scale)
    return rounded.to(x.dtype)


def round_activation(x: Tensor, precision: Precision) -> Tensor:
    """What a linear of that precision multiplies: `x`, rounded per token where the precision has 8-bit activations."""
    if precision.activation_bits >= 16:
        return x
    return quantize_activation_fp8(x) if precision.kind == "fp8" else quantize_activation_per_token(x)


def round_by_pieces(x: Tensor, precision: Precision) -> Tensor:
    """The same of x [tokens, columns], of which little is wide at a time."""
    if precision.activation_bits >= 16:
        return x
    rounded, together = torch.empty_like(x), piece_rows(*x.shape)
    for some, to in zip(torch.split(x, together), torch.split(rounded, together)):
        to.copy_(round_activation(some, precision))
    return rounded


def round_inputs(precision: Precision) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook that rounds the first input of a linear of that precision."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (round_activation(inputs[0], precision), *inputs[1:])

    return hook
