"""Copies of fx graphs: passes change a copy and leave the program they were given alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from llmpq.fx import ops
from llmpq.fx.example_calls import ExampleCalls

SHAPE_QUESTIONS = ("shape", "dtype", "device", "ndim")


def copy_graph(module: fx.GraphModule) -> fx.Graph:
    """The module's graph with the same names, arguments and annotations, node by node."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph


def with_graph(root: nn.Module | dict[str, Any], graph: fx.Graph, class_name: str) -> fx.GraphModule:
    """A module that runs `graph` on the submodules and parameters of `root` (or of a dictionary by target).

    Parameters that are tied in it stay tied when a state dict names only one of them.
    """
    graph.lint()
    module = fx.GraphModule(root, graph, class_name=class_name)
    if isinstance(root, nn.Module):
        _keep_out_of_state(module, root)
    module.register_load_state_dict_pre_hook(_complete_ties)  # type: ignore[no-untyped-call]
    return module


def _keep_out_of_state(module: nn.Module, root: nn.Module) -> None:
    """Buffers that no checkpoint holds stay so where the graph reads them itself (fx registers them anew)."""
    for path, owner in module.named_modules():
        try:
            original = root.get_submodule(path)
        except AttributeError:
            continue  # a module that a pass put in
        owner._non_persistent_buffers_set |= original._non_persistent_buffers_set & set(owner._buffers)


def _complete_ties(module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in names.values():
        given = next((name for name in tied if name in state), None)
        if given is not None:
            state.update({name: state[given] for name in tied if name not in state})


def downstream(graph: fx.Graph, targets: frozenset[str]) -> set[fx.Node]:
    """The nodes that call one of the modules `targets` or depend on one that does."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if (node.op == "call_module" and node.target in targets) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def asks_shape_only(node: fx.Node) -> bool:
    """Whether everybody who uses the node asks for shape, dtype or device."""
    return all(user.target is getattr and user.args[1] in SHAPE_QUESTIONS for user in node.users)


def reads_shape_only(source: fx.Node, user: fx.Node, calls: ExampleCalls) -> bool:
    """Whether `user` takes only shape, dtype and device from the ids or hidden state `source`.

    True of our mask functions, of questions for shape, dtype and device, and of modules that neither read nor return its
    contents (rotary embeddings, which read positions); `calls` are those of the graph's module.
    """
    if user.op == "call_module":
        return not calls.reads_value(source, user)
    if user.op == "call_method":
        return user.target in ("size", "dim")
    if user.target is getattr:
        return user.args[1] in SHAPE_QUESTIONS
    return user.target in (ops.attention_mask, ops.dense_mask) and user.args[1] is source


def from_ids(graph: fx.Graph, module: nn.Module, behind: set[fx.Node]) -> set[fx.Node]:
    """The nodes outside `behind` whose values come from input_ids: the embeddings, but nothing that reads only their shape."""
    found, calls = {placeholders(graph)["input_ids"]}, ExampleCalls(module)
    for node in graph.nodes:
        if node not in behind and any(
            source in found and not reads_shape_only(source, node, calls) for source in node.all_input_nodes
        ):
            found.add(node)
    return found


def placeholders(graph: fx.Graph) -> Mapping[str, fx.Node]:
    """Placeholders by name."""
    return {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
