"""MergedLinear: linears that read the same input, multiplied by one product where their kernels' layouts allow it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from llmpq.quantization.dense_kernel import LANES, DenseKernel, dense_kernel
from llmpq.quantization.dense_linear import DenseLinear
from llmpq.quantization.int8_kernel import int8_kernel
from llmpq.quantization.packed_kernels import packed_kernels
from llmpq.quantization.packing import is_packed
from llmpq.quantization.panel_product import panel_product
from llmpq.quantization.quantized_linear import QuantizedLinear
from llmpq.quantization.vnni_kernel import VnniKernel

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class MergedLinear:
    """`product`: x [tokens, in_features] -> [tokens, sum of sizes], the outputs of all linears beside each other."""

    sizes: tuple[int, ...]
    product: Product


def merged_linear(linears: Sequence[nn.Module]) -> MergedLinear | None:
    """Of prepared linears, which afterwards read their weights from the merged ones: not a byte more. None where they have no
    kernel in common whose layout can be joined; each of them works on by itself as before."""
    dense = [linear for linear in linears if isinstance(linear, DenseLinear)]
    quantized = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    found: Product | None = None
    if len(dense) == len(linears):
        found = _merged_dense(dense, dense_kernel())
    elif len(quantized) == len(linears):
        found = _merged_int8(quantized, int8_kernel()) or _merged_packed(quantized)
    merged: Sequence[DenseLinear | QuantizedLinear] = dense or quantized
    return None if found is None else MergedLinear(tuple(linear.out_features for linear in merged), found)


def _merged_dense(linears: Sequence[DenseLinear], kernel: DenseKernel | None) -> Product | None:
    packed = [linear._packed for linear in linears if linear._packed is not None]
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    if kernel is None or len(packed) < len(linears) or not _can_join(linears, biases):
        return None
    whole, parts = _joined(packed)
    bias, bias_parts = _joined(biases) if biases else (None, ())
    for linear, part in zip(linears, parts):
        linear._packed = part
    for linear, part in zip(linears, bias_parts):
        linear.bias = nn.Parameter(part, requires_grad=False)
    return partial(_dense_product, kernel, whole, sum(linear.out_features for linear in linears), bias)


def _dense_product(kernel: DenseKernel, packed: Tensor, rows: int, bias: Tensor | None, x: Tensor) -> Tensor:
    return kernel.packed_product(x, packed, rows, bias)


def _merged_int8(linears: Sequence[QuantizedLinear], kernel: object) -> Product | None:
    packed = [codes for linear in linears if (codes := linear._prepacked) is not None and not codes.is_mkldnn]
    biases = [bias for linear in linears if (bias := linear._buffers["bias"]) is not None]
    if not isinstance(kernel, VnniKernel) or len(packed) < len(linears) or not _can_join(linears, biases):
        return None
    whole, parts = _joined(packed)
    scale, scales = _joined([linear.get_buffer("weight_scale") for linear in linears])
    bias, bias_parts = _joined(biases) if biases else (None, ())
    for linear, part, of_scale in zip(linears, parts, scales):
        linear._prepacked, linear.weight_scale = part, of_scale
    for linear, part in zip(linears, bias_parts):
        linear.bias = part
    return partial(_int8_product, kernel, whole, scale, bias)


def _int8_product(kernel: VnniKernel, packed: Tensor, scale: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return kernel.product(x, packed, scale, bias)


def _merged_packed(linears: Sequence[QuantizedLinear]) -> Product | None:
    """Of weight-only linears of one precision on the CPU, where unpacking many tokens' weights takes no memory by their size."""
    first, biases = linears[0], [bias for linear in linears if (bias := linear._buffers["bias"]) is not None]
    scales = [linear.get_buffer("weight_scale") for linear in linears]
    alike = {(linear.precision.name, scale.shape[1:], scale.dtype, scale.device.type) for linear, scale in zip(linears, scales)}
    kernels = packed_kernels() if is_packed(first.precision) and scales[0].device.type == "cpu" else None
    if kernels is None or len(alike) > 1 or len({linear.in_features for linear in linears}) > 1:
        return None
    group = first.in_features // scales[0].shape[1]
    if len(biases) not in (0, len(linears)) or panel_product(kernels, first.precision.num_bits, group, torch.bfloat16) is None:
        return None
    rows = sum(linear.out_features for linear in linears)
    whole = QuantizedLinear(first.in_features, rows, bool(biases), first.precision, scales[0].dtype)
    for name in ("weight_packed", "weight_scale", *(["bias"] if biases else [])):
        joined, parts = _joined([linear.get_buffer(name) for linear in linears])
        setattr(whole, name, joined)
        for linear, part in zip(linears, parts):
            setattr(linear, name, part)
    return whole.forward


def _can_join(linears: Sequence[DenseLinear | QuantizedLinear], biases: Sequence[Tensor]) -> bool:
    """Of one input, blocks of rows without padding between them, all with a bias or none."""
    whole_blocks = all(linear.out_features % LANES == 0 for linear in linears[:-1])
    return whole_blocks and len(biases) in (0, len(linears)) and len({linear.in_features for linear in linears}) == 1


def _joined(tensors: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All of them in one memory, and the place of each in it."""
    whole = torch.cat(list(tensors))
    return whole, torch.split(whole, [len(tensor) for tensor in tensors])
