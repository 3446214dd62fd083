"""Marlin: gptqmodel's product of 4- and 8-bit weights, and which linears on which cards it takes. Not yet run on a card."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from llmpq.errors import LlmpqWarning
from llmpq.precision import Precision

# What gptqmodel 7.6's kernel asks for (nn_modules/qlinear/marlin.py; marlin_is_tile_aligned in utils/marlin.py): on Turing
# float16 alone; other sizes would be padded, to more bytes than planned.
RELEASE = "7.6."
CAPABILITIES = {torch.float16: (7, 5), torch.bfloat16: (8, 0)}
GROUPS = (32, 64, 128)
TILE, HALF_TILE = 128, 64
TYPES = {"w4a16": "uint4b8", "w8a16": "uint8b128"}  # codes + 8 and codes + 128, as they are stored
MODULES = ("gptqmodel.utils.marlin", "gptqmodel.utils.marlin_scalar_type")


@dataclass(frozen=True, slots=True)
class MarlinKernel:
    """w4a16 or w8a16 by `gptq_marlin_gemm`, for any number of tokens; summed in fp32, on Turing within a block in fp16.

    library: gptqmodel's `utils.marlin`; code_type: how it calls codes + 8, or + 128; locks: zeros that blocks take turns by.
    """

    precision: Precision
    library: Any
    code_type: Any
    locks: Tensor

    def prepack(self, packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """packed [rows, words] int32, scale [rows, groups] -> tiles, and scale [groups, rows] permuted; as many bytes."""
        words, columns = turned(packed), packed.shape[1] * 32 // self.precision.num_bits
        tiles: Tensor = self.library.gptq_marlin_repack(
            words, perm=self._none(), size_k=columns, size_n=len(packed), num_bits=self.precision.num_bits, dtype=scale.dtype
        )
        permuted: Tensor = self.library.marlin_permute_scales(
            turned(scale), size_k=columns, size_n=len(packed), group_size=columns // scale.shape[1]
        )
        return tiles, permuted

    def product(self, x: Tensor, tiles: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """x [tokens, columns] -> [tokens, rows], both of scale's dtype; tiles and scale [groups, rows] of `prepack`."""
        y: Tensor = self.library.apply_gptq_marlin_linear(
            input=x.contiguous(),
            weight=tiles,
            weight_scale=scale,
            weight_zp=self._none(),
            g_idx=self._none(),
            g_idx_sort_indices=self._none(),
            workspace=self.locks,
            wtype=self.code_type,
            output_size_per_partition=scale.shape[1],
            input_size_per_partition=x.shape[1],
            is_k_full=True,
            use_fp32_reduce=True,
        )
        return y if bias is None else y + bias

    def _none(self) -> Tensor:
        return torch.empty(0, dtype=torch.int32, device=self.locks.device)


def takes_marlin(precision: Precision, rows: int, columns: int, dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """Whether Marlin multiplies a linear of that size on a card, unpadded."""
    if precision.name not in TYPES or dtype not in CAPABILITIES or capability < CAPABILITIES[dtype]:
        return False
    aligned = rows % HALF_TILE == 0 == columns % HALF_TILE and (rows % TILE == 0 or columns % TILE == 0)
    return aligned and precision.group_size_for(columns) in GROUPS


def turned(matrix: Tensor) -> Tensor:
    """[rows, n] -> [n, rows]: scales and packed words as GPTQ has them; a word holds the same columns as ours."""
    return matrix.t().contiguous()


def marlin_kernel(precision: Precision, dtype: torch.dtype, device: torch.device) -> MarlinKernel | None:
    """The kernel of a linear that `takes_marlin`, None without gptqmodel."""
    found = _modules(dtype)
    if found is None:
        return None
    library, types = found
    code_type = getattr(types.scalar_types, TYPES[precision.name])
    return MarlinKernel(precision, library, code_type, library.marlin_make_workspace_new(device))


@cache
def _modules(dtype: torch.dtype) -> tuple[Any, Any] | None:
    """gptqmodel's `MODULES`, its kernel for that dtype compiled, at first for minutes. None, with a warning, if that fails."""
    if not _is_installed():
        return None
    with _surroundings_kept():
        try:
            library, types = (import_module(name) for name in MODULES)
        except ImportError as error:
            _without(str(error))
            return None
        if not library.marlin_runtime_available(dtype):
            _without(str(library.marlin_runtime_error(dtype)))
            return None
    return library, types


def _is_installed() -> bool:
    """Whether there is a gptqmodel whose kernels are known here; another release is told in a warning."""
    try:
        found = version("gptqmodel")
    except PackageNotFoundError:
        return False
    if not found.startswith(RELEASE):
        _without(f"found release {found}, expected {RELEASE}x; pip install 'llmpq[gptqmodel]'")
    return found.startswith(RELEASE)


def _without(reason: str) -> None:
    first = (reason.strip().splitlines() or ["no reason given"])[0]
    warnings.warn(f"gptqmodel's Marlin kernel is not used, weights are dequantized: {first}", LlmpqWarning, stacklevel=2)


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    """gptqmodel prints to standard output and sets variables of the environment while it is imported."""
    before = dict(os.environ)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
