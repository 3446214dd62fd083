"""Small operators of layers, each one pass over its rows, for CPUs with AVX-512, by a C file."""

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from llmpq.native import load_library
from llmpq.quantization.packed_kernels import over_rows

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fno-math-errno")
LEAST_ELEMENTS = 2**18  # per thread: less is done before the others have started
NormForm = Literal["rounded", "wide", "one more", "centered"]  # in the order of the C file, which says what they are
Activation = Literal["silu", "gelu_tanh"]
NORM_FORMS: tuple[NormForm, ...] = get_args(NormForm)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True, slots=True)
class Operators:
    """All tensors are bfloat16 on the CPU, their last dimension without gaps."""

    library: ctypes.CDLL

    def norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float, form: NormForm) -> Tensor:
        """x [..., columns] over its last dimension; weight, bias [columns]."""
        x = x.contiguous()
        y, columns = torch.empty_like(x), x.shape[-1]
        gain, shift = None if weight is None else weight.data_ptr(), None if bias is None else bias.data_ptr()
        given = (x.data_ptr(), gain, shift, y.data_ptr(), columns, epsilon, NORM_FORMS.index(form))
        _over(x.numel() // columns, columns, self.library.norm, given)
        return y

    def rotate(self, x: Tensor, cosine: Tensor, sine: Tensor) -> None:
        """Turn x [tokens, heads, dim], heads without gaps, in place; cosine, sine: [tokens, dim], contiguous."""
        tokens, heads, dim = x.shape
        given = (x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), heads, dim, x.stride(0))
        _over(tokens, heads * dim, self.library.rotate, given)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """activation(gate) * up, [rows, columns] each."""
        y, (rows, columns) = torch.empty(gate.shape, dtype=torch.bfloat16), gate.shape
        given = (
            gate.data_ptr(),
            up.data_ptr(),
            y.data_ptr(),
            columns,
            gate.stride(0),
            up.stride(0),
            ACTIVATIONS.index(activation),
        )
        _over(rows, columns, self.library.gated, given)
        return y


@cache
def operators() -> Operators | None:
    """None where there is no working C compiler or the CPU has no AVX-512."""
    library = load_library(SOURCE, FLAGS, this_cpu=True)
    if library is None or not library.has_operators():
        return None
    rows = (c_int64, c_int64)
    library.norm.argtypes = (*[c_void_p] * 4, c_int64, c_float, c_int, *rows)
    library.rotate.argtypes = (*[c_void_p] * 3, *[c_int64] * 3, *rows)
    library.gated.argtypes = (*[c_void_p] * 3, *[c_int64] * 3, c_int, *rows)
    return Operators(library)


def _over(rows: int, columns: int, call: Callable[..., object], given: tuple[object, ...]) -> None:
    """All rows, on several threads where there are many."""
    if rows * columns < 2 * LEAST_ELEMENTS:
        call(*given, 0, rows)
    else:
        over_rows(rows, partial(call, *given), max(1, LEAST_ELEMENTS // columns))
