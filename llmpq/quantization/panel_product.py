"""PanelProduct: many tokens by a weight that stays packed, of which some rows at a time are unpacked for the dense kernel."""

from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmpq.quantization.dense_kernel import LANES, DenseKernel, dense_kernel
from llmpq.quantization.packed_kernels import PackedKernels, over_rows

PANEL_ROWS = 256  # of each thread: what is unpacked is still in the cache when it is multiplied
COLUMNS = 32  # that are unpacked at a time
BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class PanelProduct:
    """Both kernels are of this CPU."""

    packed: PackedKernels
    dense: DenseKernel

    def product(self, x: Tensor, packed: Tensor, scale: Tensor, num_bits: int, bias: Tensor | None, scratch: Tensor) -> Tensor:
        """x [tokens, columns] -> [tokens, rows], with bias, all bfloat16; scratch: [`scratch_rows`, columns] bfloat16."""
        x, (rows, columns) = x.contiguous(), (len(packed), x.shape[1])
        y = torch.empty(len(x), rows, dtype=torch.bfloat16)
        panel = len(scratch) // LANES * LANES
        shape = (
            c_int64(columns),
            c_int64(columns // scale.shape[1]),
            c_int(num_bits),
            c_int64(packed.stride(0) * packed.element_size()),
        )
        half, places = c_int(scale.dtype == torch.float16), (_address(x), _address(bias), _address(y))
        for start in range(0, rows, panel):
            base = c_void_p(scratch.data_ptr() - start * columns * scratch.element_size())  # where row 0 would be
            unpack = partial(
                self.packed.library.unpack_pairs, _address(packed), _address(scale), half, base, *shape, c_int64(rows)
            )
            multiply = partial(self.dense.library.packed_product, base, *places, c_int64(rows), c_int64(columns), c_int64(len(x)))
            for step in (unpack, multiply):
                over_rows(min(panel, rows - start), partial(_from, start, step))
        return y


def panel_product(kernels: PackedKernels, num_bits: int, group_size: int, dtype: torch.dtype) -> PanelProduct | None:
    """None where this CPU multiplies no bfloat16, the activations are others, or the codes are not unpacked in vectors."""
    dense = dense_kernel()
    fits = num_bits in BITS and group_size % COLUMNS == 0 and kernels.has_vectors(num_bits, group_size, dtype)
    return PanelProduct(kernels, dense) if dense is not None and fits else None


def scratch_rows(rows: int) -> int:
    """Rows that are unpacked at a time, padded to whole blocks."""
    return min(PANEL_ROWS * torch.get_num_threads(), -(-rows // LANES) * LANES)


def _from(start: int, call: "partial[object]", first: c_int64, last: c_int64) -> None:
    call(c_int64(start + first.value), c_int64(start + last.value))


def _address(tensor: Tensor | None) -> c_void_p:
    return c_void_p(None if tensor is None else tensor.data_ptr())
