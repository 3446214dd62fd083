"""The cache kernel: int8 keys and values as bfloat16 in one pass over them, on CPU, by a C file."""

import ctypes
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from llmpq.native import load_library
from llmpq.quantization.packed_kernels import over_rows

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3",)


@dataclass(frozen=True, slots=True)
class CacheKernel:
    library: ctypes.CDLL

    def accepts(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> bool:
        """Positions one after the other in memory, whatever the strides of slots and heads."""
        on_cpu = codes.device.type == "cpu" and dtype == torch.bfloat16 and codes.dim() == 4
        return on_cpu and codes.stride()[2:] == (codes.shape[3], 1) and scale.stride(2) == 1

    def read(self, codes: Tensor, scale: Tensor) -> Tensor:
        """codes [slots, heads, positions, dim] int8, scale [slots, heads, positions, 1] fp32 -> their product, bfloat16."""
        slots, heads, positions, dim = codes.shape
        seen = torch.empty(codes.shape, dtype=torch.bfloat16)
        sizes = (heads, positions, dim, *codes.stride()[:2], *scale.stride()[:2])
        tensors = (c_void_p(tensor.data_ptr()) for tensor in (codes, scale, seen))
        over_rows(slots * heads * positions, partial(self.library.read_int8_cache, *tensors, *map(c_int64, sizes)))
        return seen


@cache
def cache_kernel() -> CacheKernel | None:
    """The compiled kernel for this CPU; None where there is no working C compiler."""
    library = load_library(SOURCE, FLAGS, this_cpu=True)
    return None if library is None else CacheKernel(library)
