"""The outer graph of a model: embedding, layers, norm and head as nodes of torch.fx, layers called whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from torch import fx, nn
from transformers import PreTrainedModel

from llmpq.errors import TraceError
from llmpq.frontend.leaf_tracer import FAILURES, LeafTracer, traced_factories
from llmpq.frontend.owned_masks import owned_masks
from llmpq.frontend.traceable import parameters_of_forward, require_traceable
from llmpq.fx import ops
from llmpq.fx.cuts import drop_unread, several_results
from llmpq.fx.graphs import downstream, placeholders, with_graph

INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values")

_TRACING = RLock()  # fx, the mask functions and the factories all change globals while a trace runs
_PREFIX = "model."


def trace(model: nn.Module) -> fx.GraphModule:
    """The outer graph of a model in eval mode: a causal language model or an encoder of transformers, or a module of the user's.

    Placeholders input_ids [batch, tokens], attention_mask [batch, past + tokens], position_ids [batch, tokens] and
    past_key_values (llmpq.runtime.kv_cache.KvCache), those that the model does not take without users; returns logits
    [batch, tokens, vocabulary], or of a model without a head the hidden state. Layers and childless modules are `call_module`
    nodes whose targets are the model's own paths, so parameter names are the model's; the parameters are shared, not copied.
    Masks of transformers are `llmpq.fx.ops.attention_mask` nodes; attention_mask may be None when nothing is padded.
    Raises TraceError with the reason when the model cannot be traced.
    """
    layers = decoder_layers(require_traceable(model))
    with _TRACING, owned_masks(model), traced_factories(), _unchanged(model):
        try:
            graph = LeafTracer(tuple(layers.values())).trace(_Root(model))
        except TraceError as error:
            raise TraceError(f"{type(model).__name__}: {error}") from error
        except FAILURES as error:
            reason = " ".join(str(error).split())
            raise TraceError(f"{type(model).__name__} cannot be traced: {reason}") from error
    canonical = _canonical(graph, frozenset(layers))
    _admit_absent_mask(canonical)
    if several_results(canonical, frozenset(layers)):
        drop_unread(canonical, model, frozenset(layers))
    return with_graph(model, canonical, type(model).__name__)


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer, in order: of the outermost module lists the one as long as the configuration says, else the longest."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists[name] = module
    config = model.config.get_text_config(decoder=True) if isinstance(model, PreTrainedModel) else None
    said = getattr(config, "num_hidden_layers", None)
    name, layers = max(lists.items(), key=lambda item: (len(item[1]) == said, len(item[1])), default=("", nn.ModuleList()))
    if not len(layers):
        raise TraceError(f"{type(model).__name__} has no list of decoder layers; expected an nn.ModuleList that holds them")
    return {f"{name}.{index}": layer for index, layer in enumerate(layers)}


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards modules keep what they kept before, whatever their code assigned to them while it was traced."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, kept, buffers in before:
            for name in vars(module).keys() - kept.keys():
                delattr(module, name)
            vars(module).update(kept)
            module._buffers.update(buffers)


class _Root(nn.Module):
    """The model behind a signature that fx can read: each input goes to the parameter of its name, ids else to the first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = parameters_of_forward(model)
        self.names = {name: name for name in INPUTS if name in takes} or {INPUTS[0]: takes[0]}
        self.options = {"use_cache": True} if "past_key_values" in takes else {}
        if isinstance(model, PreTrainedModel):
            self.options["return_dict"] = True
        self.first_position = first_position(model)

    def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past_key_values: Any) -> Any:
        if self.first_position and "position_ids" in self.names:
            position_ids = position_ids + self.first_position
        inputs = dict(zip(INPUTS, (input_ids, attention_mask, position_ids, past_key_values)))
        outputs = self.model(**{parameter: inputs[name] for name, parameter in self.names.items()}, **self.options)
        if isinstance(self.model, PreTrainedModel):
            return outputs.logits if "logits" in outputs else outputs.last_hidden_state
        return outputs


def first_position(model: nn.Module) -> int:
    """The position of the first token where a table of positions keeps rows free for padding (RoBERTa: padding_idx + 1)."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    found = next((table for table in tables if isinstance(table, nn.Embedding) and table.padding_idx is not None), None)
    return 0 if found is None or found.padding_idx is None else found.padding_idx + 1


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
