"""replace-linears: the linears of quantized options become QuantizedLinear modules, without weights until a shard is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llmpq.errors import PassError
from llmpq.fx.annotation import annotation_of
from llmpq.graph import Linear
from llmpq.layer_option import parse_option
from llmpq.precision import Precision
from llmpq.program import Program

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.fx import GraphModule


@dataclass(frozen=True, slots=True)
class ReplaceLinears:
    """Afterwards a stage's state dict has the names of its shard file. Modules are copies: the graph's stay as they are."""

    name: ClassVar[str] = "replace-linears"
    requires: ClassVar[tuple[str, ...]] = ("compute_dtype", "stages")
    provides: ClassVar[tuple[str, ...]] = ("stages",)

    def apply(self, program: Program) -> Program:
        return replace(program, stages=tuple(_lowered(stage, program) for stage in program.require("stages")))

    def verify(self, program: Program) -> Iterator[str]:
        from llmpq.quantization.quantized_linear import QuantizedLinear

        for stage in program.require("stages"):
            for path, linear, precision in _quantized(stage, program):
                for stored in linear.stored:
                    found = stage.get_submodule(path).get_submodule(stored.name)
                    if not isinstance(found, QuantizedLinear) or found.precision != precision:
                        yield f"{path}.{stored.name} is a {type(found).__name__}, expected a QuantizedLinear at {precision.name}"


def _lowered(stage: "GraphModule", program: Program) -> "GraphModule":
    import torch

    from llmpq.fx.graphs import copy_graph, with_graph
    from llmpq.fx.modules import copy_sharing_tensors

    dtype = getattr(torch, program.require("compute_dtype"))
    graph = copy_graph(stage)
    owned = copy_sharing_tensors(stage)
    for path, linear, precision in _quantized(stage, program):
        _replace(owned.get_submodule(path), linear, precision, dtype)
    return with_graph(owned, graph, type(stage).__name__)


def _quantized(stage: "GraphModule", program: Program) -> Iterator[tuple[str, Linear, Precision]]:
    """(path of the layer, linear, its precision) of every linear that the annotated options quantize."""
    for node in stage.graph.nodes:
        found = annotation_of(node)
        if found is not None and found.layer is not None and found.option is not None:
            option = parse_option(found.option)
            for linear in program.graph.kind_of(found.layer).linears:
                precision = option.of(linear.part)
                if linear.is_quantizable and precision.is_quantized:
                    yield str(node.target), linear, precision


def _replace(layer: "nn.Module", linear: Linear, precision: Precision, dtype: "torch.dtype") -> None:
    """Of experts in one parameter the whole set, at the first of their linears that is met."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from llmpq.fx.experts import RoutedExperts, experts_form, routed_experts
    from llmpq.quantization.quantized_linear import QuantizedLinear

    def quantized(of: Linear) -> "nn.Module":
        return QuantizedLinear(of.in_features, of.out_features, of.bias, precision, dtype)

    if linear.experts == 1:
        found = layer.get_submodule(linear.name)
        _require(linear, found, isinstance(found, nn.Linear | Conv1D), "a Linear or a Conv1D")
        layer.set_submodule(linear.name, quantized(linear))
        return
    owner = linear.name.rpartition(".")[0]
    experts = layer.get_submodule(owner)
    if not isinstance(experts, RoutedExperts):
        _require(linear, experts, experts_form(experts) is not None, "experts of a known form")
        experts = routed_experts(experts, lambda piece, expert: nn.Identity())
        layer.set_submodule(owner, experts)
    for stored in linear.stored:
        layer.set_submodule(stored.name, quantized(stored))


def _require(linear: Linear, found: "nn.Module", is_known: bool, expected: str) -> None:
    if not is_known:
        kind = type(found).__name__
        raise PassError(f"replace-linears: {linear.name} is a {kind}, expected {expected}; split the traced graph again")
