"""The int8 product of w8a8 for CPUs with AVX-512 VNNI, by a C file: one layout of the codes for few tokens and for many."""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from llmpq.native import load_library
from llmpq.quantization.packed_kernels import over_rows
from llmpq.quantization.rounding import activation_codes

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno")
QUAD, LANES = 4, 16  # columns beside each other, rows of a block
ZERO_POINT = 128
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class VnniKernel:
    """The codes keep their bytes, but for rows and columns that are padded to 16 and 4."""

    library: ctypes.CDLL

    def prepack(self, codes: Tensor) -> Tensor:
        """codes [rows, columns] int8 -> [blocks, quads, 16, 4] int8."""
        codes = codes.contiguous()
        rows, columns = codes.shape
        packed = torch.empty(-(-rows // LANES), -(-columns // QUAD), LANES, QUAD, dtype=torch.int8)
        self.library.arrange_codes(_address(codes), _address(packed), c_int64(rows), c_int64(columns))
        return packed

    def product(self, x: Tensor, prepacked: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [tokens, columns] -> [tokens, rows] in x's dtype; scale [rows, 1] and bias [rows] in one 16-bit dtype.

        The rounding of `quantize_activation_per_token`; the sum of products is exact.
        """
        (tokens, columns), rows = x.shape, len(scale)
        codes, steps = self._rounded(x)
        wide = x.dtype != torch.bfloat16
        y = torch.empty(tokens, rows, dtype=torch.float32 if wide else torch.bfloat16)
        tensors = (
            *(prepacked.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr(), scale.dtype == torch.float16),
            *(codes.data_ptr(), steps.data_ptr(), y.data_ptr(), wide),
        )
        over_rows(rows, partial(self.library.int8_product, *tensors, rows, columns, tokens))
        return y.to(x.dtype)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes + 128 [tokens, columns padded to 4] uint8, and the step of every token."""
        tokens, columns = x.shape
        padded = -(-columns // QUAD) * QUAD
        if x.dtype == torch.bfloat16:
            x = x.contiguous()
            codes, steps = torch.empty(tokens, padded, dtype=torch.uint8), torch.empty(tokens, dtype=torch.float32)
            self.library.round_tokens(x.data_ptr(), codes.data_ptr(), steps.data_ptr(), tokens, columns, TINY)
            return codes, steps
        found, step = activation_codes(x)
        shifted = torch.full((tokens, padded), ZERO_POINT, dtype=torch.uint8)
        shifted[:, :columns] = found.add_(ZERO_POINT).to(torch.uint8)
        return shifted, step.flatten()


@cache
def vnni_kernel() -> VnniKernel | None:
    """The compiled kernel; None where there is no working C compiler or the CPU lacks the instructions."""
    library = load_library(SOURCE, FLAGS, this_cpu=True)
    if library is None or not library.has_vnni():
        return None
    library.int8_product.argtypes = (*[c_void_p] * 3, c_int, *[c_void_p] * 3, c_int, *[c_int64] * 5)
    library.round_tokens.argtypes = (*[c_void_p] * 3, c_int64, c_int64, c_float)
    return VnniKernel(library)


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
