"""Layer kinds: layers grouped by a structural hash of their modules, settings, shapes and of what the graph hands them."""

import operator
from collections.abc import Hashable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import fx, nn

from llmpq.fx.graphs import downstream

Signature = tuple[Hashable, ...]
_PLAIN = (bool, int, float, str, type(None))


def kinds_of_layers(traced: fx.GraphModule, layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Layer path -> number of its kind, in order of appearance.

    Layers of one kind have the same modules (hence activations), parameter shapes, settings (numbers, names and functions
    that modules keep) and the same values beside the hidden state: masks with their windows, rotary values of one flavour.
    A setting that numbers the layers does not tell them apart.
    """
    inputs = _shared_inputs(traced, layers)
    settings = {path: _settings(layer) for path, layer in layers.items()}
    numbering = _numbering(tuple(settings.values()))
    numbers: dict[Signature, int] = {}
    kinds: dict[str, int] = {}
    for path, layer in layers.items():
        kept = tuple(item for item in settings[path].items() if item[0] not in numbering)
        signature = (_structure(layer), kept, inputs[path])
        kinds[path] = numbers.setdefault(signature, len(numbers))
    return kinds


def _structure(layer: nn.Module) -> Signature:
    modules = tuple((path, type(module).__qualname__) for path, module in layer.named_modules())
    shapes = tuple((path, tuple(parameter.shape)) for path, parameter in layer.named_parameters())
    return modules, shapes


def _settings(layer: nn.Module) -> dict[tuple[str, str], Hashable]:
    """(module path, name) -> what the module keeps under that name, tensors, modules and configurations aside."""
    found: dict[tuple[str, str], Hashable] = {}
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN) and not name.startswith("_"):
                found[path, name] = value
            elif isinstance(value, FunctionType | BuiltinFunctionType):
                found[path, name] = value.__qualname__
    return found


def _numbering(settings: tuple[dict[tuple[str, str], Hashable], ...]) -> frozenset[tuple[str, str]]:
    """The settings that count: as far behind the number of the layer in every layer that has them."""
    behind: dict[tuple[str, str], set[object]] = {}
    for number, found in enumerate(settings):
        for key, value in found.items():
            counts = isinstance(value, int) and not isinstance(value, bool)
            behind.setdefault(key, set()).add(value - number if counts and isinstance(value, int) else None)
    return frozenset(key for key, offsets in behind.items() if len(offsets) == 1 and None not in offsets)


def _shared_inputs(traced: fx.GraphModule, layers: Mapping[str, nn.Module]) -> dict[str, Signature]:
    """Layer path -> the expressions of its arguments, everything that comes from another layer taken as one."""
    behind = downstream(traced.graph, frozenset(layers))
    expressions: dict[fx.Node, Hashable] = {}
    interned: dict[Hashable, int] = {}
    found: dict[str, Signature] = {}
    for node in traced.graph.nodes:
        is_layer = node.op == "call_module" and node.target in layers
        if node in behind and not is_layer:
            continue
        if is_layer:
            hidden = node.all_input_nodes[0]
            found[str(node.target)] = (_hashable((node.args, node.kwargs), {**expressions, hidden: None}),)
        else:
            arguments = node.args[:1] if node.target is operator.getitem else (node.args, node.kwargs)  # of any place
            expression = (node.op, str(node.target), _hashable(arguments, expressions))
            expressions[node] = interned.setdefault(expression, len(interned))
    return found


def _hashable(value: Any, expressions: Mapping[fx.Node, Hashable]) -> Hashable:
    if isinstance(value, fx.Node):
        return ("node", expressions.get(value))
    if isinstance(value, list | tuple):
        return tuple(_hashable(item, expressions) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _hashable(item, expressions)) for key, item in value.items())
    return repr(value)
