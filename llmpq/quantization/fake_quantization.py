"""Fake quantization: layers of a model rounded as `rtn` does it but kept in floating point, to see what that does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from llmpq.graph import LayerGraph, Linear
from llmpq.layer_option import LayerOption
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.rounding import round_inputs


def quantizable_linears(graph: LayerGraph) -> Iterator[tuple[int, str, Linear]]:
    """(layer, path, linear) of everything that a precision changes, experts one by one."""
    for layer, name in enumerate(graph.layer_names):
        for linear in graph.kind_of(layer).stored:
            if linear.is_quantizable:
                yield layer, f"{name}.{linear.name}", linear


def weight_of(model: nn.Module, path: str) -> Tensor:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def fake_quantized(model: nn.Module, graph: LayerGraph, options: Mapping[int, LayerOption]) -> Iterator[None]:
    """The layers named at their options inside the block: rounded weights, and rounded inputs for w8a8 and fp8."""
    kept: list[tuple[Tensor, Tensor]] = []
    handles = []
    try:
        for layer, path, linear in quantizable_linears(graph):
            precision = options[layer].of(linear.part) if layer in options else None
            if precision is None or not precision.is_quantized:
                continue
            weight = weight_of(model, path)
            kept.append((weight, weight.clone()))
            weight.copy_(quantize_clipped(weight, precision).dequantize())
            if precision.activation_bits < 16:
                handles.append(model.get_submodule(path).register_forward_pre_hook(round_inputs(precision)))
        yield
    finally:
        for weight, original in kept:
            weight.copy_(original)
        for handle in handles:
            handle.remove()
