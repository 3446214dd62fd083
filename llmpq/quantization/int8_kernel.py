"""The int8 product of w8a8 on CPU, by oneDNN: activations rounded per token, codes multiplied as integers."""

import torch
from torch import Tensor

from llmpq.quantization.rounding import ACTIVATION_STEPS

ZERO_POINT = 128  # oneDNN's fast products take unsigned activations
TINY = torch.finfo(torch.float32).tiny


def is_available() -> bool:
    """oneDNN's quantized linear, on a CPU that sums its products in 32 bits (VNNI); older ones saturate at 16."""
    return torch.cpu._is_vnni_supported() and hasattr(torch.ops.onednn, "qlinear_prepack")


def prepack(codes: Tensor) -> Tensor:
    """codes [out_features, in_features] int8, in the layout of oneDNN: as many bytes, opaque."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def int8_product(x: Tensor, prepacked: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [tokens, in_features] -> [tokens, out_features] in x's dtype; scale: [out_features, 1].

    The same rounding as `quantize_activation_per_token`; the sum of products is exact.
    """
    wide = x.to(torch.float32)
    step = (wide.abs().amax(dim=-1, keepdim=True) / ACTIVATION_STEPS).clamp(min=TINY)
    codes = (wide / step).round_().add_(ZERO_POINT).to(torch.uint8)
    weight_scale = scale.flatten().to(torch.float32)
    none = torch.zeros(len(weight_scale), dtype=torch.int64)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, ZERO_POINT, prepacked, weight_scale, none, None, 1.0, 0, torch.float32, "none", [], ""
    )
    y = y.mul_(step)
    return (y if bias is None else y.add_(bias)).to(x.dtype)
