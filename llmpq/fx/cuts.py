"""Cuts: before which layers a graph can be cut, and which of the values between layers are read at all."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx, nn

from llmpq.fx import ops
from llmpq.fx.example_calls import ExampleCalls
from llmpq.fx.graphs import downstream, from_ids


def uncut_layers(graph: fx.Graph, module: nn.Module, layers: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the layers that must run where the one before runs: they, or later ones, read more than the hidden state.

    That is another result of an earlier layer, keys and values that it shares, or something made of the token ids themselves.
    """
    calls = ExampleCalls(module)
    behind = downstream(graph, frozenset(layers))
    by_value = from_ids(graph, module, behind)
    spans = tuple(_shared_spans(graph, calls, layers))
    found = []
    for layer in range(1, len(layers)):
        after = downstream(graph, frozenset(layers[layer:]))
        entering = {source for node in after for source in node.all_input_nodes if source not in after}
        sent = {source for source in entering if source in behind}
        if len(sent) != 1 or not entering.isdisjoint(by_value) or any(first < layer <= last for first, last in spans):
            found.append(layer)
    return tuple(found)


def _shared_spans(graph: fx.Graph, calls: ExampleCalls, layers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(layer that puts keys and values into a shared place, last layer that reads them)."""
    if not any(node.target is ops.shared_states for node in graph.nodes):
        return
    numbers = {node: layers.index(str(node.target)) for node in graph.nodes if node.op == "call_module" and node.target in layers}
    for reader, writers in calls.shared_reads(tuple(numbers)).items():
        yield from ((numbers[writer], numbers[reader]) for writer in writers)


def several_results(graph: fx.Graph, layers: frozenset[str]) -> bool:
    """Whether a layer reads more of an earlier one than its hidden state."""
    behind = downstream(graph, layers)
    called = [node for node in graph.nodes if node.op == "call_module" and node.target in layers]
    return any(len(behind.intersection(node.all_input_nodes)) > 1 for node in called)


def _without(node: fx.Node, unread: fx.Node) -> None:
    def kept(given: fx.Node) -> fx.Node | None:
        return None if given is unread else given

    args: Any = fx.map_arg(node.args, kept)
    kwargs: Any = fx.map_arg(node.kwargs, kept)
    node.args, node.kwargs = args, kwargs


def drop_unread(graph: fx.Graph, module: nn.Module, layers: frozenset[str]) -> None:
    """Hand layers None in place of what other layers made, beside the hidden state, and they do not read."""
    calls = ExampleCalls(module)
    behind = downstream(graph, layers)
    for node in [node for node in graph.nodes if node.op == "call_module" and node.target in layers]:
        others = node.all_input_nodes[1:]
        for source in others:
            if source in behind and not calls.reads_value(source, node):
                _without(node, source)
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "call_method") and not node.users:
            graph.erase_node(node)
