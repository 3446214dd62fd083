"""DenseLinear: a 16-bit linear layer multiplied by the kernel for bfloat16 where this CPU has one."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmpq.errors import QuantizationError
from llmpq.quantization.dense_kernel import PAIR, dense_kernel, unpacked

FEW_TOKENS = 4  # up to which a weight as it lies in the file is read faster by the kernel (benchmarks/kernels.py)


class DenseLinear(nn.Linear):
    """As nn.Linear. Of an own weight the kernel's layout takes the place; one that is shared (a tied head) stays as it is."""

    _packed: Tensor | None = None

    def prepare(self, is_shared: bool) -> None:
        """Bring the loaded weight into the layout of this CPU's product, in place of the parameter: as many bytes."""
        weight, kernel = self._parameters["weight"], dense_kernel()
        if kernel is None or weight is None or is_shared or not _is_for_kernel(weight) or self.in_features % PAIR:
            return
        self._packed = kernel.pack(weight.detach())
        self._parameters["weight"] = nn.Parameter(torch.empty(0, dtype=torch.bfloat16), requires_grad=False)

    @property
    def prepacked_bytes(self) -> int:
        """Bytes of the weight in the kernel's layout, which is in no parameter; 0 where it was not prepared."""
        return 0 if self._packed is None else self._packed.nbytes

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out_features, in_features]; made anew by every call where the kernel's layout took its place."""
        found = self._parameters["weight"]
        assert found is not None, "a linear has a weight"
        return found if self._packed is None else unpacked(self._packed, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        kernel, tokens = dense_kernel(), x.numel() // self.in_features
        if self._packed is not None:
            if x.dtype != torch.bfloat16:
                raise QuantizationError(f"this linear was prepared for bfloat16; load the model again to compute in {x.dtype}")
            assert kernel is not None, "prepared by a kernel that is not there"
            y = kernel.packed_product(x.reshape(tokens, self.in_features), self._packed, self.out_features, self.bias)
        elif 0 < tokens <= FEW_TOKENS and kernel is not None and _is_for_kernel(x) and _is_for_kernel(self.weight):
            y = kernel.few_tokens(x.reshape(tokens, self.in_features), self.weight, self.bias)
        else:
            return functional.linear(x, self.weight, self.bias)
        return y.view(*x.shape[:-1], self.out_features)


def use_dense_kernel(linear: nn.Linear, is_shared: bool) -> None:
    """Make a linear one of these, its place in the model as it is. is_shared: others need its weight as well."""
    linear.__class__ = DenseLinear
    assert isinstance(linear, DenseLinear)
    linear.prepare(is_shared)


def _is_for_kernel(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and tensor.dim() > 1 and tensor.is_contiguous()
