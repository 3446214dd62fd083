"""QuantizedLinear: a linear layer whose weight stays packed, multiplied by the kernel that suits the device and the tokens."""

import threading
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmpq.errors import QuantizationError
from llmpq.pieces import panel_rows, piece_rows
from llmpq.precision import Precision
from llmpq.quantization.cuda_kernels import CardKernel, capability_of, card_kernel, int8_product, takes_int8
from llmpq.quantization.dense_linear import use_dense_kernel
from llmpq.quantization.int8_kernel import int8_kernel
from llmpq.quantization.packed_kernels import PackedKernels, packed_kernels
from llmpq.quantization.packing import is_packed, layout, unpack_codes
from llmpq.quantization.panel_product import panel_product
from llmpq.quantization.rounding import QuantizedWeight, round_activation, round_by_pieces


class QuantizedLinear(nn.Module):
    """y = dequantize(W) x + bias, in x's dtype; 8-bit activations are rounded per token first.

    Buffers have the names, types and shapes of the tensors on disk: weight_packed, weight_scale, weight_shape (weight-only)
    or weight, weight_scale (w8a8), and bias. They are empty until a state dict is loaded.
    In fp32 the weight is dequantized per call: the reference. In 16 bits on CPU: weight-only by the packed kernels, w8a8 by an
    int8 product once `prepare` was called, and what no kernel takes some rows at a time (llmpq.pieces). On CUDA: w4a16 and
    w8a8 by torch's products where the card and the sizes allow it, w4a16 and w8a16 else by gptqmodel's where it is installed,
    everything else dequantized per call.
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
        self._group = precision.group_size_for(in_features)
        self._prepacked: Tensor | None = None
        self._card: CardKernel | None = None
        for name, (stored, shape) in layout(precision, out_features, in_features, dtype).items():
            self.register_buffer(name, torch.empty(shape, dtype=stored, device=device))
        self.register_buffer("bias", torch.empty(out_features, dtype=dtype, device=device) if bias else None)

    def prepare(self) -> None:
        """Bring loaded codes into the layout of the device's product, in place of the buffer: as many bytes but for padding.

        w8a8 on CPU, weight-only on a card that has a product for it.
        """
        scale = self.get_buffer("weight_scale")
        if scale.device.type == "cuda":
            self._card = card_kernel(self.precision, self.out_features, self.in_features, scale.dtype, scale.device)
            if self._card is not None:
                self._prepacked, self.weight_scale = self._card.prepack(self.get_buffer("weight_packed"), scale)
                self.weight_packed = torch.empty(0, dtype=torch.int32, device=scale.device)
            return
        kernel = None if is_packed(self.precision) or self.precision.kind == "fp8" else int8_kernel()
        if kernel is None or scale.device.type != "cpu":
            return
        self._prepacked = kernel.prepack(self.get_buffer("weight"))
        self.weight = torch.empty(0, dtype=torch.int8)

    @property
    def prepacked_bytes(self) -> int:
        """Bytes of the codes in the layout of the device's product, which are in no buffer; 0 where they were not prepared."""
        if self._prepacked is None:
            return 0
        return self.in_features * self.out_features if self._prepacked.is_mkldnn else self._prepacked.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        flat = x.reshape(-1, self.in_features)
        return self._product(flat).view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            return x.new_empty(0, self.out_features)
        if self._prepacked is not None:
            return self._by_prepacked(x, self._prepacked)
        if self._is_for_int_mm(x):
            return int8_product(x, self.get_buffer("weight"), self.get_buffer("weight_scale"), self._buffers["bias"])
        kernels = self._kernels(x)
        return self._by_definition(x) if kernels is None else self._by_kernels(x, kernels)

    def _by_prepacked(self, x: Tensor, prepacked: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            raise QuantizationError("this linear was prepared for its integer kernel; load the model again to compute in fp32")
        kernel = int8_kernel() if self._card is None else self._card
        assert kernel is not None, "prepared by a kernel that is not there"
        return kernel.product(x, prepacked, self.get_buffer("weight_scale"), self._buffers["bias"])

    def _is_for_int_mm(self, x: Tensor) -> bool:
        """Whether torch's int8 product takes it on this card."""
        if x.device.type != "cuda" or x.dtype == torch.float32:
            return False
        return takes_int8(self.precision, self.out_features, self.in_features, capability_of(x.device))

    def _kernels(self, x: Tensor) -> PackedKernels | None:
        if x.device.type != "cpu" or x.dtype == torch.float32 or not is_packed(self.precision):
            return None
        found = packed_kernels()
        scale = self.get_buffer("weight_scale")
        return found if found and found.accepts(self.precision.num_bits, self._group, scale) else None

    def _by_kernels(self, x: Tensor, kernels: PackedKernels) -> Tensor:
        if kernels.is_few(len(x), self.precision.num_bits, self._group, x.dtype):
            return self.few_tokens(x, kernels)
        return self.many_tokens(x, kernels) if x.dtype == torch.bfloat16 else self._by_definition(x)

    def few_tokens(self, x: Tensor, kernels: PackedKernels) -> Tensor:
        """x [tokens, in_features], 16 bits, by the product that reads codes as they are packed; at most MOST_TOKENS."""
        packed, scale, bits = self.get_buffer("weight_packed"), self.get_buffer("weight_scale"), self.precision.num_bits
        bias = self._buffers["bias"]
        if bias is None and kernels.has_vectors(bits, self._group, x.dtype):
            return kernels.rounded_product(x, packed, scale, bits)
        y = kernels.product(x, packed, scale, bits)
        return (y if bias is None else y + bias).to(x.dtype, memory_format=torch.contiguous_format)

    def many_tokens(self, x: Tensor, kernels: PackedKernels) -> Tensor:
        """x [tokens, in_features], bfloat16, by unpacking some rows at a time for the dense product."""
        panels = panel_product(kernels, self.precision.num_bits, self._group, x.dtype)
        if panels is None:
            return self._in_panels(x, kernels)
        packed, scale = self.get_buffer("weight_packed"), self.get_buffer("weight_scale")
        return panels.product(x, packed, scale, self.precision.num_bits, self._buffers["bias"])

    def _by_definition(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype != torch.float32:
            return self._in_panels(round_by_pieces(x, self.precision), None)
        weight = self._codes(slice(None)).dequantize(x.dtype)
        return functional.linear(round_activation(x, self.precision), weight, self._buffers["bias"])

    def _in_panels(self, x: Tensor, kernels: PackedKernels | None) -> Tensor:
        """Some rows of the weight are unpacked at a time, into a buffer that all linears share."""
        together, bias = panel_rows(self.out_features, self.in_features), self._buffers["bias"]
        panel = _scratch.panel(together, self.in_features, x.dtype)
        if together == self.out_features:
            return functional.linear(x, self._unpacked(slice(0, together), panel, kernels), bias)
        y = x.new_empty(len(x), self.out_features)
        for first in range(0, self.out_features, together):
            rows = slice(first, min(first + together, self.out_features))
            weight = self._unpacked(rows, panel, kernels)
            y[:, rows] = functional.linear(x, weight, None if bias is None else bias[rows])
        return y

    def _unpacked(self, rows: slice, panel: Tensor, kernels: PackedKernels | None) -> Tensor:
        """Rows of the dequantized weight, rounded once, in the panel; without kernels fp32 is in between, piece by piece."""
        out = panel[: rows.stop - rows.start]
        if kernels is not None:
            packed, scale = self.get_buffer("weight_packed")[rows], self.get_buffer("weight_scale")[rows]
            return kernels.unpack(packed, scale, self.precision.num_bits, out)
        together = piece_rows(*out.shape)
        for first, to in zip(range(rows.start, rows.stop, together), torch.split(out, together)):
            to.copy_(self._codes(slice(first, first + len(to))).dequantize(out.dtype))
        return out

    def _codes(self, rows: slice) -> QuantizedWeight:
        scale = self.get_buffer("weight_scale")[rows]
        if is_packed(self.precision):
            codes = unpack_codes(self.get_buffer("weight_packed")[rows], self.precision.num_bits, self.in_features)
        else:
            codes = self.get_buffer("weight")[rows]
        return QuantizedWeight(self.precision, codes, scale)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, precision={self.precision.name}"


def prepare_linears(module: nn.Module) -> None:
    """Give the linears of a stage whose weights are loaded their kernels. A weight that modules share stays as it is."""
    owners = Counter(weight.data_ptr() for _, weight in module.named_parameters(remove_duplicate=False))
    for found in module.modules():
        if isinstance(found, QuantizedLinear):
            found.prepare()
        elif type(found) is nn.Linear:
            use_dense_kernel(found, is_shared=owners[found.weight.data_ptr()] > 1)


def forget_scratch() -> None:
    """Let go of this thread's buffer of unpacked rows; the next linear that needs one allocates it anew."""
    _scratch.buffer = torch.empty(0, dtype=torch.bfloat16)


class _Scratch(threading.local):
    """One buffer per thread, as large as the largest panel that was unpacked into it."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.bfloat16)

    def panel(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """dtype: of 16 bits."""
        if self.buffer.numel() < rows * columns:
            self.buffer = torch.empty(0, dtype=torch.bfloat16)  # before there is a larger one
            self.buffer = torch.empty(rows * columns, dtype=torch.bfloat16)
        return self.buffer[: rows * columns].view(dtype).view(rows, columns)


_scratch = _Scratch()
