"""The int8 product of w8a8 on CPU: activations rounded per token, codes multiplied as integers, by our kernel or by oneDNN."""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from llmpq.pieces import product_tokens
from llmpq.quantization.rounding import codes_by_pieces
from llmpq.quantization.vnni_kernel import vnni_kernel

ZERO_POINT = 128  # oneDNN's fast products take unsigned activations


class Int8Kernel(Protocol):
    """A product, and the layout of the codes that it takes."""

    def prepack(self, codes: Tensor) -> Tensor:
        """codes [out_features, in_features] int8, in the kernel's layout: as many bytes, but for padding."""
        ...

    def product(self, x: Tensor, prepacked: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [tokens, in_features] -> [tokens, out_features] in x's dtype; scale: [out_features, 1].

        The same rounding as `quantize_activation_per_token`; the sum of products is exact.
        """
        ...


class OneDnnKernel:
    """oneDNN's quantized linear, on a CPU that sums its products in 32 bits (VNNI, AMX); older ones saturate at 16."""

    def prepack(self, codes: Tensor) -> Tensor:
        packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
        return packed

    def product(self, x: Tensor, prepacked: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        codes = torch.empty(x.shape, dtype=torch.uint8)
        step, together = codes_by_pieces(x, codes, ZERO_POINT), product_tokens(len(scale))
        weight_scale = scale.flatten().to(torch.float32)
        none = torch.zeros(len(weight_scale), dtype=torch.int64)
        y = x.new_empty(len(x), len(scale))
        for some, of_some, to in zip(torch.split(codes, together), torch.split(step, together), torch.split(y, together)):
            wide: Tensor = torch.ops.onednn.qlinear_pointwise(
                some, 1.0, ZERO_POINT, prepacked, weight_scale, none, None, 1.0, 0, torch.float32, "none", [], ""
            )
            wide = wide.mul_(of_some)
            to.copy_(wide if bias is None else wide.add_(bias))
        return y


def is_available() -> bool:
    """Whether this CPU has any."""
    return int8_kernel() is not None


@cache
def int8_kernel() -> Int8Kernel | None:
    """Our own on AVX-512 VNNI; oneDNN's where there are tiles (AMX) or no C compiler; None where products would saturate."""
    own = None if torch.cpu._is_amx_tile_supported() else vnni_kernel()
    if own is not None:
        return own
    return OneDnnKernel() if torch.cpu._is_vnni_supported() and hasattr(torch.ops.onednn, "qlinear_prepack") else None
