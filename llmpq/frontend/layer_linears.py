"""Linears of a layer: the products with weights of its operators, as far as their modules can be replaced."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from torch import nn
from transformers.pytorch_utils import Conv1D

from llmpq.fx.experts import experts_form
from llmpq.graph import Linear
from llmpq.op_facts import attention_products, fusion_groups, part_of, routers, weight_products
from llmpq.op_graph import Op, OpGraph


def linears_of(layer: nn.Module, ops: OpGraph, replaceable: Collection[str]) -> Iterator[Linear]:
    """In the order of the layer's parameters. `replaceable`: paths of the linear modules that are called as modules.

    What decides (a product that chooses experts, or one with a single row) stays as it is. A set of experts is a 3-D parameter;
    where every expert works on every token, all of them are active.
    """
    products = {op.weights[0].name: op for op in weight_products(ops)}
    attention, groups, deciding = attention_products(ops), fusion_groups(ops), routers(ops)
    leaders: dict[str, str] = {}
    for name, _ in layer.named_parameters():
        op = products.get(name)
        path = name.removesuffix(".weight")
        if op is None or op.product is None or op.name in deciding or not _can_be_replaced(layer, op, path, replaceable):
            continue
        columns, rows = op.product.columns(1, 1, 1), op.product.k(1, 1, 1)
        if columns > 1:
            group = leaders.setdefault(groups[op.name], path)
            experts, active = _experts(op)
            linear = Linear(
                path, rows, columns, len(op.weights) > 1, part_of(op, attention), group, op.product.transposed, experts, active
            )
            yield linear if experts == 1 else _in_pieces(layer, linear)


def _can_be_replaced(layer: nn.Module, op: Op, path: str, replaceable: Collection[str]) -> bool:
    if len(op.weights[0].shape) == 3:
        return op.weights[0].shape[0] > 1
    return path in replaceable and isinstance(layer.get_submodule(path), nn.Linear | Conv1D)


def _in_pieces(layer: nn.Module, linear: Linear) -> Linear:
    """With the linears that an expert's rows are, where the module is known."""
    owner, _, parameter = linear.name.rpartition(".")
    form = experts_form(layer.get_submodule(owner))
    if form is None or form.is_transposed != linear.transposed:
        return linear
    pieces = form.pieces[parameter]
    return replace(linear, pieces=pieces, interleaved=form.is_interleaved and len(pieces) > 1)


def _experts(op: Op) -> tuple[int, int]:
    """(experts, those that work on each token)."""
    experts = op.weights[0].shape[0] if len(op.weights[0].shape) == 3 else 1
    return experts, op.experts_per_token or experts
