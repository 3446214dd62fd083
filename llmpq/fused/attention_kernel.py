"""The attention of one new token against a cache, for CPUs with AVX-512 BF16, by a C file."""

import ctypes
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from llmpq.native import load_library
from llmpq.quantization.packed_kernels import over_rows

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno")
MOST_DIM = 512  # of the C file
NO_MASK, ALLOWED, ADDED = range(3)
LEAST_PRODUCTS = 2**19  # per thread: less is done before the others have started


class _Call(ctypes.Structure):
    """attention_t of the C file."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "key", "value", "mask", "out")),
        *((name, c_int64) for name in ("heads", "kv_heads", "positions", "dim", "value_dim", "query_slot", "query_head")),
        *((f"{side}_{of}", c_int64) for side in ("key", "value") for of in ("slot", "head", "position")),
        *((name, c_int64) for name in ("mask_slot", "mask_head", "mask_kind")),
        ("scale", c_float),
    )


@dataclass(frozen=True, slots=True)
class AttentionKernel:
    """query [slots, heads, 1, dim], key [slots, kv_heads, positions, dim], value of value_dim; mask: see `accepts`; bfloat16."""

    library: ctypes.CDLL

    def accepts(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
        """One token each, vectors without gaps, heads in groups; no mask, or [slots or 1, heads or 1, 1, positions]: bool, True
        where attention is allowed, or bfloat16, which is added to scores."""
        if query.dtype != torch.bfloat16 or query.device.type != "cpu" or query.dim() != 4 or query.shape[2] != 1:
            return False
        slots, heads, _, dim = query.shape
        return (
            key.dtype == value.dtype == torch.bfloat16
            and key.shape[:3] == value.shape[:3]
            and (key.shape[0], key.shape[3]) == (slots, dim)
            and (heads % key.shape[1], dim % 2) == (0, 0)
            and max(dim, value.shape[3]) <= MOST_DIM
            and query.stride(3) == key.stride(3) == value.stride(3) == 1
            and (mask is None or _is_readable(mask, (slots, heads, 1, key.shape[2])))
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """[slots, 1, heads, value_dim], as wide as softmax(scale query key^T + mask) value in fp32, rounded once."""
        (slots, heads, _, dim), (_, kv_heads, positions, value_dim) = query.shape, value.shape
        out = torch.empty(slots, 1, heads, value_dim, dtype=torch.bfloat16)
        kind, mask_strides = NO_MASK, (0, 0)
        if mask is not None:
            kind = ALLOWED if mask.dtype == torch.bool else ADDED
            mask_strides = mask.stride(0) if mask.shape[0] > 1 else 0, mask.stride(1) if mask.shape[1] > 1 else 0
        call = _Call(
            *(query.data_ptr(), key.data_ptr(), value.data_ptr(), mask.data_ptr() if mask is not None else None, out.data_ptr()),
            *(heads, kv_heads, positions, dim, value_dim),
            *(*query.stride()[:2], *key.stride()[:3], *value.stride()[:3], *mask_strides, kind, scale),
        )
        products = heads // kv_heads * max(positions, 1) * (dim + value_dim)
        over_rows(slots * kv_heads, partial(self.library.attend, ctypes.byref(call)), max(1, LEAST_PRODUCTS // products))
        return out


def _is_readable(mask: Tensor, full: tuple[int, int, int, int]) -> bool:
    known = mask.dtype in (torch.bool, torch.bfloat16) and mask.dim() == 4 and mask.device.type == "cpu"
    if not known or mask.shape[2:] != full[2:] or (full[3] > 1 and mask.stride(3) != 1):
        return False
    return all(size in (1, most) for size, most in zip(mask.shape[:2], full))


@cache
def attention_kernel() -> AttentionKernel | None:
    """None where there is no working C compiler or the CPU multiplies no bfloat16."""
    library = load_library(SOURCE, FLAGS, this_cpu=True)
    return AttentionKernel(library) if library is not None and library.has_attention() else None
