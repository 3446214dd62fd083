"""PanelProduct: many tokens by a weight that stays packed, unpacked a few KiB at a time where it is multiplied, by a C file."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmpq.quantization.dense_kernel import dense_kernel
from llmpq.quantization.packed_kernels import PackedKernels, over_rows

COLUMNS = 32  # that are unpacked at a time
BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class PanelProduct:
    """No memory by the size of the weight or the number of tokens beside the result, whatever the number of threads."""

    packed: PackedKernels

    def product(self, x: Tensor, packed: Tensor, scale: Tensor, num_bits: int, bias: Tensor | None) -> Tensor:
        """x [tokens, columns] -> [tokens, rows], with bias, all bfloat16, sums in fp32."""
        x, rows, (tokens, columns) = x.contiguous(), len(packed), x.shape
        y = torch.empty(tokens, rows, dtype=torch.bfloat16)
        tensors = (packed.data_ptr(), scale.data_ptr(), scale.dtype == torch.float16, x.data_ptr())
        ends = (None if bias is None else bias.data_ptr(), y.data_ptr(), columns, columns // scale.shape[1])
        sizes = (num_bits, packed.stride(0) * packed.element_size(), rows, tokens)
        over_rows(rows, partial(self.packed.library.many_tokens, *tensors, *ends, *sizes))
        return y


def panel_product(kernels: PackedKernels, num_bits: int, group_size: int, dtype: torch.dtype) -> PanelProduct | None:
    """None where the CPU multiplies no bfloat16 or torch is faster (see dense_kernel), the activations are others, or the codes
    are not unpacked in vectors."""
    fits = num_bits in BITS and group_size % COLUMNS == 0 and kernels.has_vectors(num_bits, group_size, dtype)
    return PanelProduct(kernels) if dense_kernel() is not None and fits else None
