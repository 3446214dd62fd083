"""Packed kernels: products with weights as they lie in the file, and unpacking them for many tokens, on CPU, by a C file."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from llmpq.native import load_library

SOURCE = Path(__file__).with_suffix(".c")
# Sums in any order, so that loops become vectors. Not -ffast-math: gcc then makes loading the library turn off subnormal numbers
# in the whole process.
FLAGS = ("-O3", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
MOST_GROUP, MOST_TOKENS = 4096, 32  # of the C file
BITS = (3, 4, 8)
# Up to how many tokens the product beats unpacking and a dense product (benchmarks/kernels.py): with, without vectors of bf16.
FEW_TOKENS = {3: (24, 0), 4: (12, 2), 8: (8, 2)}
HALVES = (torch.bfloat16, torch.float16)
LEAST_ROWS = 256  # per thread: less is done before the others have started
LEAST_UNPACKED = 32  # likewise, of rows that are unpacked in C without vectors


@dataclass(frozen=True, slots=True)
class PackedKernels:
    """`packed` [rows, words] int32 and `scale` [rows, groups] are the tensors of `llmpq.quantization.packing`."""

    library: ctypes.CDLL
    vector_columns: dict[int, int]  # by bits: what groups must be a multiple of for vectors; 0: there are none

    def accepts(self, num_bits: int, group_size: int, scale: Tensor) -> bool:
        """Groups that end with a byte of the stream, and 16-bit scales."""
        return num_bits in BITS and group_size % 8 == 0 and group_size <= MOST_GROUP and scale.dtype in HALVES

    def is_few(self, tokens: int, num_bits: int, group_size: int, dtype: torch.dtype) -> bool:
        with_vectors, without = FEW_TOKENS[num_bits]
        return 0 < tokens <= (with_vectors if self.has_vectors(num_bits, group_size, dtype) else without)

    def has_vectors(self, num_bits: int, group_size: int, dtype: torch.dtype) -> bool:
        """Whether this CPU multiplies bfloat16 in vectors, the activations are bfloat16, and the group fills vectors."""
        columns = self.vector_columns[num_bits]
        return dtype == torch.bfloat16 and bool(columns) and group_size % columns == 0

    def product(self, x: Tensor, packed: Tensor, scale: Tensor, num_bits: int) -> Tensor:
        """x [tokens, columns] -> [tokens, rows] in fp32, exact up to the order of sums."""
        (tokens, columns), rows = x.shape, packed.shape[0]
        group = columns // scale.shape[1]
        arranged = self.arranged(x, num_bits, group)
        y = torch.empty(rows, tokens, dtype=torch.float32)
        shape = (c_int64(columns), c_int64(group), c_int(num_bits), c_int64(packed.stride(0) * packed.element_size()))
        half = c_int(scale.dtype == torch.float16)
        if self.has_vectors(num_bits, group, x.dtype):
            tensors = (_address(packed), _address(scale), half, _address(arranged), _address(y))
            over_rows(rows, partial(self.library.few_tokens_vectors, *tensors, *shape, c_int64(tokens)))
        else:
            arranged = arranged.to(torch.float32)
            tensors = (_address(packed), _address(scale), half, _address(arranged), _address(y))
            over_rows(rows, partial(self._with_scratch, tensors, shape, tokens))
        return y.t()

    def rounded_product(self, x: Tensor, packed: Tensor, scale: Tensor, num_bits: int) -> Tensor:
        """The same rounded once to bfloat16, contiguous; for few tokens, where `has_vectors`."""
        (tokens, columns), rows = x.shape, packed.shape[0]
        assert tokens <= MOST_TOKENS, "more tokens than few"
        group, y = columns // scale.shape[1], torch.empty(tokens, rows, dtype=torch.bfloat16)
        arranged = self.arranged(x, num_bits, group)
        tensors = (packed.data_ptr(), scale.data_ptr(), scale.dtype == torch.float16, arranged.data_ptr(), y.data_ptr())
        sizes = (columns, group, num_bits, packed.stride(0) * packed.element_size(), tokens, rows)
        over_rows(rows, partial(self.library.few_tokens_rounded, *tensors, *sizes))
        return y

    def arranged(self, x: Tensor, num_bits: int, group: int) -> Tensor:
        """x [tokens, columns], 16 bits: the columns of every group in the order in which the C file decodes them, contiguous."""
        x = x.contiguous()
        if num_bits == 8:
            return x
        found = torch.empty_like(x)
        self.library.arrange(x.data_ptr(), found.data_ptr(), *x.shape, group, num_bits)
        return found

    def _with_scratch(self, tensors: tuple[object, ...], shape: tuple[c_int64 | c_int, ...], tokens: int, *ends: c_int64) -> None:
        scratch = torch.empty(shape[0].value, dtype=torch.float32)
        self.library.few_tokens(*tensors, _address(scratch), *shape, c_int64(tokens), *ends)

    def unpack(self, packed: Tensor, scale: Tensor, num_bits: int, out: Tensor) -> Tensor:
        """The dequantized weight into `out`, [rows, columns] bfloat16, rounded once."""
        rows, columns = out.shape
        stride = packed.stride(0) * packed.element_size()
        over_rows(
            rows,
            partial(
                self.library.unpack_bfloat16,
                *(_address(packed), _address(scale), c_int(scale.dtype == torch.float16), _address(out)),
                *(c_int64(columns), c_int64(columns // scale.shape[1]), c_int(num_bits), c_int64(stride)),
            ),
            LEAST_UNPACKED,
        )
        return out


@cache
def packed_kernels() -> PackedKernels | None:
    """The compiled kernels for this CPU; None where there is no working C compiler."""
    library = load_library(SOURCE, FLAGS, this_cpu=True)
    if library is None:
        return None
    columns = {bits: int(library.vector_columns(c_int(bits))) for bits in BITS}
    library.arrange.argtypes = (*[c_void_p] * 2, *[c_int64] * 3, c_int)
    if any(columns.values()):
        library.few_tokens_rounded.argtypes = (*[c_void_p] * 2, c_int, *[c_void_p] * 2, *[c_int64] * 2, c_int, *[c_int64] * 5)
        library.many_tokens.argtypes = (*[c_void_p] * 2, c_int, *[c_void_p] * 3, *[c_int64] * 2, c_int, *[c_int64] * 5)
    return PackedKernels(library, columns)


def over_rows(rows: int, run: Callable[..., object], least: int = LEAST_ROWS) -> None:
    """`run(first, last)` over all rows, in as many parts as torch uses threads, of `least` rows each."""
    parts = max(1, min(torch.get_num_threads(), rows // least))
    ends = [rows * part // parts for part in range(parts + 1)]
    if parts == 1:
        run(c_int64(0), c_int64(rows))
        return
    list(_threads(parts).map(lambda first, last: run(c_int64(first), c_int64(last)), ends[:-1], ends[1:]))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="packed-kernels")


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
