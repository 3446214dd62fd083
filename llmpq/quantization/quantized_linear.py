"""QuantizedLinear: a linear layer whose weight stays packed, multiplied by the kernel that suits the device and the tokens."""

import threading

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmpq.errors import QuantizationError
from llmpq.precision import Precision
from llmpq.quantization import int8_kernel
from llmpq.quantization.packed_kernels import PackedKernels, packed_kernels
from llmpq.quantization.packing import is_packed, layout, unpack
from llmpq.quantization.rounding import quantize_activation_per_token


class QuantizedLinear(nn.Module):
    """y = dequantize(W) x + bias, in x's dtype; 8-bit activations are rounded per token first.

    Buffers have the names, types and shapes of the tensors on disk: weight_packed, weight_scale, weight_shape (weight-only)
    or weight, weight_scale (w8a8), and bias. They are empty until a state dict is loaded.
    In fp32 the weight is dequantized per call: the reference. In 16 bits on CPU: weight-only by the packed kernels for few
    tokens, unpacked into a buffer that all linears share for many; w8a8 by oneDNN once `prepare` was called.
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
        self._prepacked: Tensor | None = None
        for name, (stored, shape) in layout(precision, out_features, in_features, dtype).items():
            self.register_buffer(name, torch.empty(shape, dtype=stored, device=device))
        self.register_buffer("bias", torch.empty(out_features, dtype=dtype, device=device) if bias else None)

    def prepare(self) -> None:
        """Bring loaded w8a8 codes into the layout of this CPU's int8 product, in place of the buffer: as many bytes."""
        if is_packed(self.precision) or not int8_kernel.is_available() or self.get_buffer("weight").device.type != "cpu":
            return
        self._prepacked = int8_kernel.prepack(self.get_buffer("weight"))
        self.weight = torch.empty(0, dtype=torch.int8)

    @property
    def prepacked_bytes(self) -> int:
        """Bytes of the codes in the layout of this CPU's product, which are in no buffer; 0 where they were not prepared."""
        return 0 if self._prepacked is None else self.in_features * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        flat = x.reshape(-1, self.in_features)
        return self._product(flat).view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_empty(0, self.out_features)
        if self._prepacked is not None:
            if x.dtype == torch.float32:
                raise QuantizationError("this linear was prepared for its int8 kernel; load the model again to compute in fp32")
            return int8_kernel.int8_product(x, self._prepacked, self.get_buffer("weight_scale"), self._buffers["bias"])
        kernels = self._kernels(x)
        return self._by_definition(x) if kernels is None else self._by_kernels(x, kernels)

    def _kernels(self, x: Tensor) -> PackedKernels | None:
        if x.device.type != "cpu" or x.dtype == torch.float32 or not is_packed(self.precision):
            return None
        found = packed_kernels()
        scale = self.get_buffer("weight_scale")
        group = self.in_features // scale.shape[1]
        return found if found and found.accepts(self.precision.num_bits, group, scale) else None

    def _by_kernels(self, x: Tensor, kernels: PackedKernels) -> Tensor:
        packed, scale, bits = self.get_buffer("weight_packed"), self.get_buffer("weight_scale"), self.precision.num_bits
        if kernels.is_few(len(x), bits, self.in_features // scale.shape[1], x.dtype):
            y, bias = kernels.product(x, packed, scale, bits), self._buffers["bias"]
            return (y if bias is None else y + bias).to(x.dtype, memory_format=torch.contiguous_format)
        if x.dtype != torch.bfloat16:
            return self._by_definition(x)
        weight = kernels.unpack(packed, scale, bits, _scratch.weight(self.out_features, self.in_features))
        return functional.linear(x, weight, self._buffers["bias"])

    def _by_definition(self, x: Tensor) -> Tensor:
        if self.precision.activation_bits < 16:
            x = quantize_activation_per_token(x)
        weight = unpack({name: self.get_buffer(name) for name in self._suffixes}, self.precision).dequantize(x.dtype)
        return functional.linear(x, weight, self._buffers["bias"])

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"


def prepare_linears(module: nn.Module) -> None:
    """`prepare` every quantized linear of a stage whose weights are loaded."""
    for found in module.modules():
        if isinstance(found, QuantizedLinear):
            found.prepare()


def forget_scratch() -> None:
    """Let go of this thread's buffer of unpacked weights; the next linear that needs one allocates it anew."""
    _scratch.buffer = torch.empty(0, dtype=torch.bfloat16)


class _Scratch(threading.local):
    """One buffer per thread, as large as the largest weight that was unpacked into it."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.bfloat16)

    def weight(self, rows: int, columns: int) -> Tensor:
        if self.buffer.numel() < rows * columns:
            self.buffer = torch.empty(0, dtype=torch.bfloat16)  # before there is a larger one
            self.buffer = torch.empty(rows * columns, dtype=torch.bfloat16)
        return self.buffer[: rows * columns].view(rows, columns)


_scratch = _Scratch()
