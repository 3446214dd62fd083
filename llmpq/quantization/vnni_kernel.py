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
            *(_address(prepacked), _address(scale), c_void_p(None) if bias is None else _address(bias)),
            *(c_int(scale.dtype == torch.float16), _address(codes), _address(steps), _address(y), c_int(wide)),
        )
        over_rows(rows, partial(self.library.int8_product, *tensors, c_int64(rows), c_int64(columns), c_int64(tokens)))
        return y.to(x.dtype)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes + 128 [tokens, columns padded to 4] uint8, and the step of every token."""
        tokens, columns = x.shape
        padded = -(-columns // QUAD) * QUAD
        if x.dtype == torch.bfloat16:
            x = x.contiguous()
            codes, steps = torch.empty(tokens, padded, dtype=torch.uint8), torch.empty(tokens, dtype=torch.float32)
            places = (_address(x), _address(codes), _address(steps))
            self.library.round_tokens(*places, c_int64(tokens), c_int64(columns), c_float(TINY))
            return codes, steps
        found, step = activation_codes(x)
        shifted = torch.full((tokens, padded), ZERO_POINT, dtype=torch.uint8)
        shifted[:, :columns] = found.add_(ZERO_POINT).to(torch.uint8)
        return shifted, step.flatten()


@cache
def vnni_kernel() -> VnniKernel | None:
    """The compiled kernel; None where there is no working C compiler or the CPU lacks the instructions."""
    library = load_library(SOURCE, FLAGS, this_cpu=True)
    return VnniKernel(library) if library is not None and library.has_vnni() else None


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
