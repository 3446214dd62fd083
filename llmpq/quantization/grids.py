"""Grids: the values that codes of a precision may have, in units of their scale."""

import torch
from torch import Tensor

from llmpq.precision import Precision

FP8_LARGEST = 448.0  # of e4m3


def code_dtype(precision: Precision) -> torch.dtype:
    """What codes are kept in."""
    return torch.float8_e4m3fn if precision.kind == "fp8" else torch.int8


def edge(precision: Precision) -> float:
    """The largest magnitude of the grid: that of e4m3, or of integers half a step beyond the largest code, as compressed-tensors
    has it."""
    return FP8_LARGEST if precision.kind == "fp8" else (2**precision.num_bits - 1) / 2


def nearest(x: Tensor, precision: Precision) -> Tensor:
    """The values of the grid nearest to x, fp32; x may be overwritten."""
    if precision.kind == "fp8":
        return x.clamp_(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).to(torch.float32)
    half = 2 ** (precision.num_bits - 1)
    return x.round_().clamp_(-half, half - 1)
