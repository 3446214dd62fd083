"""QuantizedLinear: a linear layer whose weight stays as it is stored, and is dequantized per call."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmpq.precision import Precision
from llmpq.quantization.packing import layout, unpack
from llmpq.quantization.rounding import quantize_activation_per_token


class QuantizedLinear(nn.Module):
    """y = dequantize(W) x + bias, computed in x's dtype; 8-bit activations are rounded per token first.

    Buffers have the names, types and shapes of the tensors on disk: weight_packed, weight_scale, weight_shape (weight-only)
    or weight, weight_scale (w8a8), and bias. They are empty until a state dict is loaded.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        precision: Precision,
        dtype: torch.dtype,
        device: torch.device | str = "meta",
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.precision = precision
        self._suffixes = tuple(layout(precision, out_features, in_features, dtype))
        for name, (stored, shape) in layout(precision, out_features, in_features, dtype).items():
            self.register_buffer(name, torch.empty(shape, dtype=stored, device=device))
        self.register_buffer("bias", torch.empty(out_features, dtype=dtype, device=device) if bias else None)

    @classmethod
    def from_linear_shape(
        cls,
        in_features: int,
        out_features: int,
        bias: bool,
        precision: Precision,
        dtype: torch.dtype,
        device: torch.device | str = "meta",
    ) -> "QuantizedLinear":
        return cls(in_features, out_features, bias, precision, dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        if self.precision.activation_bits < 16:
            x = quantize_activation_per_token(x)
        weight = unpack({name: self.get_buffer(name) for name in self._suffixes}, self.precision).dequantize(x.dtype)
        return functional.linear(x, weight, self._buffers["bias"])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"
