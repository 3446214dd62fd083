"""The product of 16-bit linears for CPUs with AVX-512 BF16, by a C file: one layout of the weight for few tokens and for many."""

import ctypes
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from llmpq.native import load_library
from llmpq.quantization.packed_kernels import over_rows

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno")
LANES, PAIR = 16, 2  # rows of a block, columns beside each other


@dataclass(frozen=True, slots=True)
class DenseKernel:
    """x [tokens, columns] -> [tokens, rows]; bias [rows]; all bfloat16, sums in fp32."""

    library: ctypes.CDLL

    def pack(self, weight: Tensor) -> Tensor:
        """weight [rows, columns], an even number of columns -> [blocks, pairs, 16, 2], rows padded to 16."""
        weight = weight.contiguous()
        (rows, columns), pairs = weight.shape, weight.shape[1] // PAIR
        packed = torch.empty(-(-rows // LANES), columns // PAIR, LANES, PAIR, dtype=torch.bfloat16)
        self.library.arrange_pairs(_address(weight), _address(packed), c_int64(rows), c_int64(pairs))
        return packed

    def packed_product(self, x: Tensor, packed: Tensor, rows: int, bias: Tensor | None) -> Tensor:
        return _product(self.library.packed_product, x, packed, rows, bias)

    def few_tokens(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """weight [rows, columns] as it lies in the file, contiguous."""
        return _product(self.library.few_tokens, x, weight, len(weight), bias)


def unpacked(packed: Tensor, rows: int) -> Tensor:
    """The inverse of DenseKernel.pack."""
    return packed.transpose(1, 2).reshape(packed.shape[0] * LANES, -1)[:rows]


@cache
def dense_kernel() -> DenseKernel | None:
    """None where there is no working C compiler or the CPU multiplies no bfloat16; where it has tiles (AMX), torch is faster."""
    library = None if torch.cpu._is_amx_tile_supported() else load_library(SOURCE, FLAGS, this_cpu=True)
    if library is None or not library.has_bfloat16():
        return None
    for product in (library.packed_product, library.few_tokens):
        product.argtypes = (*[c_void_p] * 4, *[c_int64] * 5)
    return DenseKernel(library)


def _product(call: Callable[..., object], x: Tensor, weight: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    x, (tokens, columns) = x.contiguous(), x.shape
    y = torch.empty(tokens, rows, dtype=torch.bfloat16)
    places = (weight.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr())
    over_rows(rows, partial(call, *places, rows, columns, tokens))
    return y


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
