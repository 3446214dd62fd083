"""GPTQ: codes chosen column by column, each column's rounding error made good by the columns still to come."""

import torch
from torch import Tensor

from llmpq.precision import Precision
from llmpq.quantization.clipping import clipped_scale
from llmpq.quantization.grids import code_dtype, nearest
from llmpq.quantization.hessian import Factor
from llmpq.quantization.rounding import QuantizedWeight, quantize, require_quantizable, round_to

BLOCK = 128  # columns between two updates of all that follow


def gptq(weight: Tensor, precision: Precision, factor: Factor, scale_dtype: torch.dtype = torch.bfloat16) -> QuantizedWeight:
    """Codes of small E|W x - W' x|^2 (Frantar et al. 2022, arXiv 2210.17323), never more than by rounding to nearest.

    weight: [out_features, in_features], float and finite; factor: of the Hessian of its input.
    Scales are fixed beforehand, of every group of neighbouring columns on its own ("static groups"), so columns can be taken in
    order of their diagonal entry while engines find the groups where they expect them. Of each row the best of three is
    kept: GPTQ, rounding with clipped scales, rounding with the largest magnitude.
    """
    require_quantizable(weight, precision)
    wide = weight.detach().to(torch.float32)
    scale = clipped_scale(wide, precision, scale_dtype)
    found = passed_on(wide, precision, factor, scale)
    for other in (round_to(wide, precision, scale), quantize(wide, precision, scale_dtype)):
        found = _better_rows(wide, factor, found, other)
    return found


def passed_on(weight: Tensor, precision: Precision, factor: Factor, scale: Tensor) -> QuantizedWeight:
    """GPTQ's codes for given scales [out_features, groups].

    Of column c, in the order of `factor`, the error e = (w_c - w'_c) / U_cc is taken from each later column d as e U_cd.
    Within a block column by column, beyond it for the whole block at once.
    """
    size = weight.shape[1] // scale.shape[1]
    remaining = weight.t()[factor.order].contiguous()  # [in, out]: a column of the weight is a row in memory
    steps = scale.to(torch.float32).t().contiguous()
    groups: list[int] = (factor.order // size).tolist()
    codes = torch.empty(remaining.shape, dtype=code_dtype(precision), device=weight.device)
    for start in range(0, len(groups), BLOCK):
        stop = min(start + BLOCK, len(groups))
        errors = torch.empty_like(remaining[start:stop])
        for column in range(start, stop):
            step, passed = steps[groups[column]], factor.inverse[column, column:stop]
            code = nearest(remaining[column] / step, precision)
            codes[column] = code
            errors[column - start] = (remaining[column] - code * step) / passed[0]
            remaining[column + 1 : stop].addr_(passed[1:], errors[column - start], alpha=-1)
        remaining[stop:].addmm_(factor.inverse[start:stop, stop:].t(), errors, alpha=-1)
    ordered = torch.empty_like(codes)
    ordered.view(torch.int8)[factor.order] = codes.view(torch.int8)  # e4m3 is moved as bytes
    return QuantizedWeight(precision, ordered.t().contiguous(), scale)


def _better_rows(weight: Tensor, factor: Factor, left: QuantizedWeight, right: QuantizedWeight) -> QuantizedWeight:
    """Of each row the one of smaller Hessian loss."""
    losses = [factor.loss(weight - quantized.dequantize()) for quantized in (left, right)]
    chosen = (losses[1] < losses[0])[:, None]
    codes = torch.where(chosen, right.codes.view(torch.int8), left.codes.view(torch.int8)).view(left.codes.dtype)
    return QuantizedWeight(left.precision, codes, torch.where(chosen, right.scale, left.scale))
