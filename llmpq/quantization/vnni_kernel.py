"""The int8 product of w8a8 for CPUs with AVX-512 VNNI, by a C file: one layout of the codes for few tokens and for many."""

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from llmpq.native import load_library
from llmpq.pieces import product_tokens
from llmpq.quantization.packed_kernels import over_rows
from llmpq.quantization.rounding import codes_by_pieces

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
        codes, steps = self._rounded(x)
        weight = (prepacked.data_ptr(), scale.data_ptr(), None if bias is None else bias.data_ptr(), scale.dtype == torch.float16)
        y = torch.empty(len(x), len(scale), dtype=x.dtype)
        if x.dtype == torch.bfloat16:
            return self._multiply(weight, codes, steps, x.shape[1], y)
        together = product_tokens(len(scale))
        for some, of_some, to in zip(torch.split(codes, together), torch.split(steps, together), torch.split(y, together)):
            to.copy_(self._multiply(weight, some, of_some, x.shape[1], torch.empty(to.shape, dtype=torch.float32)))
        return y

    def _multiply(self, weight: tuple[int | None, ...], codes: Tensor, steps: Tensor, columns: int, y: Tensor) -> Tensor:
        """Into y [tokens, rows], bfloat16 or fp32."""
        tokens, rows = y.shape
        tensors = (*weight, codes.data_ptr(), steps.data_ptr(), y.data_ptr(), y.dtype != torch.bfloat16)
        over_rows(rows, partial(self.library.int8_product, *tensors, rows, columns, tokens))
        return y

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes + 128 [tokens, columns padded to 4] uint8, and the step of every token."""
        tokens, columns = x.shape
        codes = torch.empty(tokens, -(-columns // QUAD) * QUAD, dtype=torch.uint8)
        if x.dtype == torch.bfloat16:
            x, steps = x.contiguous(), torch.empty(tokens, dtype=torch.float32)
            self.library.round_tokens(x.data_ptr(), codes.data_ptr(), steps.data_ptr(), tokens, columns, TINY)
            return codes, steps
        return codes, codes_by_pieces(x, codes.fill_(ZERO_POINT)[:, :columns], ZERO_POINT).flatten()


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
