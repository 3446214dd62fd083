"""LayerGraph extraction: the traced graph and the modules it calls, as a value without torch."""

from collections.abc import Iterator
from typing import Any

from torch import fx, nn
from transformers import PreTrainedModel

from llmpq.errors import TraceError
from llmpq.frontend.layer_kinds import kinds_of_layers
from llmpq.frontend.layer_linears import linears_of
from llmpq.frontend.layer_ops import LayerFacts, ModelOps, model_ops
from llmpq.frontend.tracing import decoder_layers, first_position
from llmpq.fx.cuts import uncut_layers
from llmpq.fx.graphs import asks_shape_only, downstream, from_ids, placeholders
from llmpq.fx.ops import attention_mask
from llmpq.graph import Attention, LayerGraph, LayerKind, Parameter
from llmpq.op_graph import OpGraph

UNBOUNDED_POSITIONS = 2**31 - 1  # ALiBi: no table of positions ends the context


def layer_graph(model: nn.Module, traced: fx.GraphModule, name: str) -> LayerGraph:
    """The value behind `traced`, which `trace(model)` made; `name` is what the user calls the model.

    Layers of one kind are structurally equal (llmpq.frontend.layer_kinds); everything else comes from dataflow:
    linears, fusion groups, experts and heads from the operators of a layer per kind, the ends from the graph.
    """
    layers = decoder_layers(model)
    windows = _windows(traced, frozenset(layers))
    kinds = kinds_of_layers(traced, layers)
    recorded = model_ops(traced, kinds)
    firsts = {kind: next(path for path, found in kinds.items() if found == kind) for kind in recorded.kinds}
    first, last = _ends(model, traced, frozenset(layers))
    everywhere = tuple(name for name in _cloned(model, traced, frozenset(layers)) if name in first)
    head = _head(model, traced, downstream(traced.graph, frozenset(layers)))
    config = _text_config(model)
    shared = {id(parameter): found for found, parameter in first.items()}
    return LayerGraph(
        model=name,
        architecture=type(model).__name__,
        hidden_size=recorded.facts[0].hidden_size,
        vocab_size=_vocab_size(model, traced),
        max_positions=getattr(config, "max_position_embeddings", UNBOUNDED_POSITIONS) - first_position(model),
        kinds=tuple(_kind(model, path, recorded, kind, windows[path]) for kind, path in firsts.items()),
        layer_kind=tuple(kinds.values()),
        layer_names=tuple(layers),
        first=tuple(Parameter(found, tuple(parameter.shape)) for found, parameter in first.items()),
        last=tuple(Parameter(found, tuple(parameter.shape)) for found, parameter in last.items() if id(parameter) not in shared),
        head=head,
        tied_head=shared.get(id(model.get_submodule(head).weight)) if head else None,
        first_ops=recorded.first,
        shared_ops=recorded.shared,
        last_ops=recorded.last,
        everywhere=everywhere,
        uncut=_uncut(model, traced, tuple(layers), recorded),
    )


def _uncut(model: nn.Module, traced: fx.GraphModule, layers: tuple[str, ...], recorded: ModelOps) -> tuple[int, ...]:
    """Layers that no stage can begin with; all of them where the hidden state is more than [batch, tokens, hidden_size]."""
    if any(facts.hidden_rank != 3 for facts in recorded.facts.values()):
        return tuple(range(1, len(layers)))
    return uncut_layers(traced.graph, model, layers)


def _text_config(model: nn.Module) -> Any:
    """The configuration that describes the layers; None for a module of the user's."""
    return model.config.get_text_config(decoder=True) if isinstance(model, PreTrainedModel) else None


def _vocab_size(model: nn.Module, traced: fx.GraphModule) -> int:
    """Rows of the table that the token ids are looked up in, where no configuration says it."""
    config = _text_config(model)
    if config is not None:
        return int(config.vocab_size)
    ids = placeholders(traced.graph)["input_ids"]
    tables = (model.get_submodule(str(user.target)) for user in ids.users if user.op == "call_module")
    found = next((table for table in tables if isinstance(table, nn.Embedding)), None)
    if found is None:
        raise TraceError(f"{type(model).__name__} looks its token ids up in no nn.Embedding; expected one")
    return found.num_embeddings


def _windows(traced: fx.GraphModule, layers: frozenset[str]) -> dict[str, int | None]:
    """Layer path -> the window of the mask that reaches it without passing another layer."""
    behind = downstream(traced.graph, layers)
    windows: dict[str, int | None] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            masks = [source for source in _sources(node, behind) if source.target is attention_mask]
            limits = masks[0].kwargs if masks else {}
            window: Any = limits.get("window") or limits.get("chunk")
            windows[node.target] = window
    return windows


def _sources(node: fx.Node, behind: set[fx.Node]) -> Iterator[fx.Node]:
    """What `node` depends on and no layer feeds, nearest first."""
    queue = [source for source in node.all_input_nodes if source not in behind]
    for source in queue:
        yield source
        queue.extend(found for found in source.all_input_nodes if found not in queue)


def _kind(model: nn.Module, path: str, recorded: ModelOps, kind: int, window: int | None) -> LayerKind:
    layer, ops, facts = model.get_submodule(path), recorded.kinds[kind], recorded.facts[kind]
    linears = tuple(linears_of(layer, ops, facts.replaceable))
    counted = sum(linear.experts * (linear.in_features + linear.bias) * linear.out_features for linear in linears)
    return LayerKind(
        name=f"layer-{kind}",
        linears=linears,
        other_parameters=sum(parameter.numel() for parameter in layer.parameters()) - counted,
        attention=_attention(model, ops, facts, window),
        ops=ops,
    )


def _attention(model: nn.Module, ops: OpGraph, facts: LayerFacts, window: int | None) -> Attention:
    heads = next((op.heads for op in ops.ops if op.heads is not None), None)
    num_heads = getattr(_text_config(model), "num_attention_heads", 1) if heads is None else heads.num_heads
    if not facts.num_kv_heads:
        return Attention(num_heads, 0, 0 if heads is None else heads.head_dim, window)
    value_dim = None if facts.value_dim == facts.head_dim else facts.value_dim
    return Attention(num_heads, facts.num_kv_heads, facts.head_dim, window, value_dim, facts.index_dim)


def _ends(
    model: nn.Module, traced: fx.GraphModule, layers: frozenset[str]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Name -> parameter of what runs before, and of what runs behind the layers."""
    behind = downstream(traced.graph, layers)
    parameters = dict(model.named_parameters())
    first: dict[str, nn.Parameter] = {}
    last: dict[str, nn.Parameter] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target not in layers:
            (last if node in behind else first).update(model.get_submodule(node.target).named_parameters(prefix=node.target))
        elif node.op == "get_attr" and node.target in parameters and not asks_shape_only(node):
            (last if behind.issuperset(node.users) else first)[node.target] = parameters[node.target]
    return first, {name: parameter for name, parameter in last.items() if name not in first}


def _cloned(model: nn.Module, traced: fx.GraphModule, layers: frozenset[str]) -> Iterator[str]:
    """Names of parameters of what no layer feeds and layers read beside the hidden state, which every stage makes again."""
    behind = downstream(traced.graph, layers)
    by_value = from_ids(traced.graph, model, behind)
    parameters = dict(model.named_parameters())
    queue = [source for node in behind for source in node.all_input_nodes if source not in behind | by_value]
    for node in queue:
        queue.extend(source for source in node.all_input_nodes if source not in by_value and source not in queue)
    targets = {str(node.target) for node in queue if node.op in ("call_module", "get_attr")}
    yield from (name for name in parameters if name in targets or name.rpartition(".")[0] in targets)


def _head(model: nn.Module, traced: fx.GraphModule, behind: set[fx.Node]) -> str:
    """Path of the last linear that is called behind the layers, "" where there is none."""
    for node in reversed(traced.graph.nodes):
        if node.op == "call_module" and node in behind and isinstance(model.get_submodule(node.target), nn.Linear):
            return str(node.target)
    return ""
