"""Clipping: scales that make the squared error of rounding least, below those that reach the largest magnitude."""

import torch
from torch import Tensor

from llmpq.precision import Precision
from llmpq.quantization.grids import nearest
from llmpq.quantization.rounding import QuantizedWeight, require_quantizable, round_to, stored_scale

# The smallest share of the largest magnitude that is tried, by bits: below it the error rose for normal and Laplace weights.
LOWEST_SHARE = {3: 0.45, 4: 0.6, 8: 0.8}
STEPS = 20  # a step is 2 to 3 %; bfloat16 tells scales apart that differ by 0.4 to 0.8 %
CHUNK = 1 << 18  # weights looked at together: 1 MiB of fp32, which stays in a core's cache


def quantize_clipped(weight: Tensor, precision: Precision, scale_dtype: torch.dtype = torch.bfloat16) -> QuantizedWeight:
    """Round to nearest, with the scales of `clipped_scale`."""
    return round_to(weight, precision, clipped_scale(weight, precision, scale_dtype))


def clipped_scale(weight: Tensor, precision: Precision, dtype: torch.dtype) -> Tensor:
    """[out_features, groups] in `dtype`: of each group the scale of least squared rounding error.

    Tried are STEPS shares of the largest magnitude, the whole first, so that no group is worse than under `quantize`. Raises
    QuantizationError like `quantize`.
    """
    require_quantizable(weight, precision)
    rows = max(1, CHUNK // weight.shape[1])
    return torch.cat([_scale(chunk, precision, dtype) for chunk in torch.split(weight.detach(), rows)])


def _scale(weight: Tensor, precision: Precision, dtype: torch.dtype) -> Tensor:
    group_size = precision.group_size_for(weight.shape[1])
    grouped = weight.to(torch.float32).reshape(weight.shape[0], -1, group_size)
    absmax = grouped.abs().amax(-1)
    best = stored_scale(absmax, precision, dtype)
    if precision.kind == "fp8":  # steps grow with the values: a smaller scale rounds none of them better
        return best
    least = _error(grouped, best, precision)
    for share in torch.linspace(1.0, LOWEST_SHARE[precision.num_bits], STEPS).tolist()[1:]:
        scale = stored_scale(absmax * share, precision, dtype)
        error = _error(grouped, scale, precision)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _error(grouped: Tensor, scale: Tensor, precision: Precision) -> Tensor:
    """[out, groups]: the sum of squares of what rounding to `scale` changes."""
    step = scale.to(torch.float32).unsqueeze(-1)
    return nearest(grouped / step, precision).mul_(step).sub_(grouped).square_().sum(-1)
