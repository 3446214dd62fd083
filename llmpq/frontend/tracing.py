"""The leaf tracer: a causal language model as a torch.fx graph of embedding, decoder layers, norm and head."""

import inspect
from collections.abc import Sequence
from threading import RLock
from typing import Any

from torch import fx, nn
from transformers import PreTrainedModel

from llmpq.errors import TraceError
from llmpq.frontend.owned_masks import owned_masks
from llmpq.fx import ops
from llmpq.fx.graphs import downstream, placeholders, with_graph

INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values")
IMPLEMENTATIONS = ("sdpa", "eager")

_TRACING = RLock()  # fx and the mask functions both change globals while a trace runs
_RANK = {"input_ids": 2, "attention_mask": 2, "position_ids": 2}
_PREFIX = "model."


def trace(model: nn.Module) -> fx.GraphModule:
    """The outer graph of a transformers causal language model in eval mode.

    Placeholders input_ids [batch, tokens], attention_mask [batch, past + tokens], position_ids [batch, tokens] and
    past_key_values (llmpq.runtime.kv_cache.KvCache); returns logits [batch, tokens, vocabulary]. Decoder layers and
    childless modules are `call_module` nodes whose targets are the model's own paths, so parameter names are the
    model's; the parameters are shared, not copied. Masks are `llmpq.fx.ops.attention_mask` nodes; attention_mask may be None
    when nothing is padded.
    Raises TraceError with the reason when the model cannot be traced.
    """
    causal = require_causal_lm(model)
    layers = decoder_layers(causal)
    with _TRACING, owned_masks(causal):
        try:
            graph = _LeafTracer(tuple(layers.values())).trace(_Root(causal))
        except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise TraceError(f"{type(causal).__name__} cannot be traced: {reason}") from error
    canonical = _canonical(graph, frozenset(layers))
    _admit_absent_mask(canonical)
    return with_graph(causal, canonical, type(causal).__name__)


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> decoder layer, in order: the longest of the outermost module lists."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    name, layers = max(lists.items(), key=lambda item: len(item[1]), default=("", nn.ModuleList()))
    if not len(layers):
        raise TraceError(f"{type(model).__name__} has no list of decoder layers; expected an nn.ModuleList that holds them")
    return {f"{name}.{index}": layer for index, layer in enumerate(layers)}


def require_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The model, when it is one that can be traced. Raises TraceError with the reason and the remedy."""
    if not isinstance(model, PreTrainedModel):
        raise TraceError(
            f"a {type(model).__name__} is not a transformers model; expected a PreTrainedModel such as LlamaForCausalLM"
        )
    if model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        raise TraceError(f"{type(model).__name__} has no language model head; expected a causal language model (…ForCausalLM)")
    if model.training:
        raise TraceError(f"{type(model).__name__} is in training mode; call model.eval() first")
    if model.config._attn_implementation not in IMPLEMENTATIONS:
        found = model.config._attn_implementation
        raise TraceError(
            f"attention implementation {found!r} cannot be traced; build the model with one of {', '.join(IMPLEMENTATIONS)}"
        )
    return model


class _Root(nn.Module):
    """The model behind a signature that fx can read."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past_key_values: Any) -> Any:
        positions = {"position_ids": position_ids} if self.takes_positions else {}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=True,
            return_dict=True,
            **positions,
        )
        return outputs.logits


class _RankedProxy(fx.Proxy):
    """A placeholder whose number of dimensions is known: models branch on it."""

    @property
    def ndim(self) -> int:
        return _RANK[self.node.name]

    def dim(self) -> int:
        return self.ndim


class _LeafTracer(fx.Tracer):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(param_shapes_constant=True)
        self._layers = frozenset(map(id, layers))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._layers or next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _RankedProxy(node, self) if node.op == "placeholder" and node.name in _RANK else super().proxy(node)


def _canonical(traced: fx.Graph, layers: frozenset[str]) -> fx.Graph:
    """The live nodes in an order and under names that depend on dataflow alone (some models iterate over sets).

    Placeholders come first, then what no layer feeds, then the layers and what follows; targets lose the wrapper's prefix.
    """
    behind = downstream(traced, frozenset(_PREFIX + layer for layer in layers))
    live = _post_order(next(iter(reversed(traced.nodes))))
    placeholders = [node for node in traced.nodes if node.op == "placeholder"]
    inner = [node for node in live if node.op not in ("placeholder", "output")]
    ordered = (
        placeholders + [node for node in inner if node not in behind] + [node for node in inner if node in behind] + live[-1:]
    )
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in ordered:
        target = node.target.removeprefix(_PREFIX) if node.op in ("call_module", "get_attr") else node.target
        args, kwargs = (fx.map_arg(value, copies.__getitem__) for value in (node.args, node.kwargs))
        copies[node] = graph.create_node(node.op, target, args, kwargs)
    return graph


def _admit_absent_mask(graph: fx.Graph) -> None:
    """Let whatever reads the padding, beside our mask function, read ones where no attention_mask is given."""
    inputs = placeholders(graph)
    padding = inputs["attention_mask"]
    readers = [node for node in padding.users if node.target is not ops.attention_mask]
    if readers:
        with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
            dense = graph.call_function(ops.dense_mask, (padding, inputs["position_ids"], inputs["past_key_values"]))
        for node in readers:
            node.replace_input_with(padding, dense)


def _post_order(output: fx.Node) -> list[fx.Node]:
    """Everything that `output` needs, inputs before users, arguments from left to right."""
    done: dict[fx.Node, None] = {}
    stack = [output]
    while stack:
        node = stack[-1]
        waiting = [source for source in node.all_input_nodes if source not in done]
        if waiting and node not in done:
            stack.extend(reversed(waiting))
        else:
            done[stack.pop()] = None
    return list(done)
