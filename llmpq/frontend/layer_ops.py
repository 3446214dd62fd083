"""Operators of a model: one layer of each kind, and what stands before and behind the layers, recorded without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from llmpq.errors import TraceError
from llmpq.frontend.called_modules import watched_calls
from llmpq.frontend.op_draft import draft
from llmpq.frontend.op_emission import op_graph
from llmpq.frontend.op_patterns import merge_patterns
from llmpq.frontend.op_recording import Record, Recorder, Value
from llmpq.frontend.tracing import INPUTS
from llmpq.fx.graphs import downstream, placeholders
from llmpq.fx.modules import copy_sharing_tensors, experts_by_shape
from llmpq.op_graph import OpGraph

HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What operators alone do not tell of a layer.

    replaceable: paths of linear modules that another module can stand for
    num_kv_heads, head_dim, value_dim, index_dim: what it writes to the cache of each token; no heads where it has no cache
    hidden_size, hidden_rank: of its result; rank 3 is [batch, tokens, hidden_size]
    """

    replaceable: frozenset[str]
    num_kv_heads: int
    head_dim: int
    value_dim: int
    index_dim: int
    hidden_size: int
    hidden_rank: int


@dataclass(frozen=True, slots=True)
class ModelOps:
    """kinds: by number, parameters named relative to the layer; `shared`: masks, positions, rotary values for all layers."""

    kinds: dict[int, OpGraph]
    facts: dict[int, LayerFacts]
    first: OpGraph
    shared: OpGraph
    last: OpGraph


def model_ops(traced: fx.GraphModule, kinds: dict[str, int]) -> ModelOps:
    """The operators of `traced`; of each kind in `kinds` (layer path -> kind) those of its first layer.

    Raises TraceError where shapes alone do not tell what runs.
    """
    recorder = Recorder()
    interpreter = _OpInterpreter(traced, kinds, recorder)
    with recorder.active():
        ids = recorder.empty(recorder.batch, recorder.tokens, dtype=torch.long)
        values = {"input_ids": ids, "attention_mask": None, "position_ids": ids.clone(), "past_key_values": interpreter.cache}
        try:
            logits = interpreter.run(*(values[name] for name in INPUTS))
        except TraceError as error:
            raise TraceError(str(error).splitlines()[0]) from error
        except (RuntimeError, NotImplementedError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise TraceError(f"the layers of {type(traced).__name__} cannot be run on shapes alone: {reason}") from error
        return interpreter.ops(recorder.value(logits))


class _Writer:
    """Stands for the KV cache: what is written to it becomes an operator that returns past and new positions."""

    def __init__(self, recorder: Recorder, past: int | torch.SymInt) -> None:
        self._recorder = recorder
        self._past = past
        self.written: list[tuple[int, int, int]] = []  # heads, sizes of key and value
        self.index_dim = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._past  # type: ignore[return-value]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.written.append((int(key.shape[1]), int(key.shape[3]), int(value.shape[3])))
        return self._extended(key), self._extended(value)

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        """Keys that choose what attention sees (sparse attention): cached beside the others."""
        self.index_dim = int(index_key.shape[-1])
        return self._extended(index_key)

    def _extended(self, new: Tensor) -> Tensor:
        *outer, tokens, size = new.shape
        whole = self._recorder.empty(*outer, self._past + tokens, size, dtype=new.dtype)
        return self._recorder.append("cache_update", (new,), whole)


class _OpInterpreter(fx.Interpreter):
    """Runs the graph on stand-ins, but of each kind only the first layer; the others return what that one returned."""

    def __init__(self, traced: fx.GraphModule, kinds: dict[str, int], recorder: Recorder) -> None:
        super().__init__(traced)
        self.cache = _Writer(recorder, recorder.past if _caches(traced, kinds) else 0)
        self._kinds = kinds
        self._recorder = recorder
        self._behind = downstream(traced.graph, frozenset(kinds))
        self._outputs: dict[int, Any] = {}
        self._hidden: dict[int, Value] = {}
        self._facts: dict[int, LayerFacts] = {}
        self._paths: dict[int, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        with self._recorder.piece("last" if n in self._behind else "front"):
            result = super().run_node(n)
        for place, leaf in enumerate(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            self._recorder.recording.names.setdefault(self._recorder.value(leaf), f"{n.name}.{place}" if place else n.name)
        return result

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = super().get_attr(target, args, kwargs)
        return self._recorder.stand_in(found, target) if isinstance(found, Tensor) else found

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = self._kinds.get(target)
        if kind is None:
            return self._call(target, self.module.get_submodule(target), args, kwargs)
        if kind not in self._outputs:
            self._paths[kind] = target
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self._hidden[kind] = self._recorder.value(tensors[0])
            with self._recorder.piece(f"kind {kind}"):
                self._run_layer(kind, target, args, kwargs)
        return self._outputs[kind]

    def _run_layer(self, kind: int, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = copy_sharing_tensors(self.module.get_submodule(target))
        calls, cache = watched_calls(layer), self.cache
        cache.written.clear()
        cache.index_dim = 0
        output = self._outputs[kind] = self._call(target, layer, args, kwargs)
        times, given = len(cache.written), (*args, *kwargs.values())
        expected = any(value is cache for value in given)
        shares = any(isinstance(value, dict) for value in given)
        if times != expected and not (times == 0 and shares):
            raise TraceError(f"layer {target} wrote the KV cache {times} times; expected once (attention layers only)")
        written = cache.written[0] if times else (0, 0, 0)
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        self._facts[kind] = LayerFacts(calls.replaceable, *written, cache.index_dim, int(hidden.shape[-1]), hidden.ndim)

    def _call(self, target: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        stand_ins = {name: self._recorder.stand_in(tensor, f"{target}.{name}") for name, tensor in tensors.items()}
        with experts_by_shape(module):
            return functional_call(module, stand_ins, args, kwargs)

    def ops(self, logits: Value) -> ModelOps:
        """Everything that was recorded, as graphs."""
        recording, hidden = self._recorder.recording, self._hidden[0]
        front = recording.pieces["front"]
        kinds = {kind: self._kind(kind) for kind in self._paths}
        return ModelOps(
            kinds,
            self._facts,
            self._graph(front, (hidden,), {}),
            self._graph(front, self._shared(), {}),
            self._graph(recording.pieces["last"], (logits,), self._layer_results()),
        )

    def _kind(self, kind: int) -> OpGraph:
        records = self._recorder.recording.pieces[f"kind {kind}"]
        results = tuple(self._recorder.value(leaf) for leaf in tree_leaves(self._outputs[kind])[:1] if isinstance(leaf, Tensor))
        prefix = f"{self._paths[kind]}."
        return self._graph(records, results, {self._hidden[kind]: HIDDEN}, prefix)

    def _shared(self) -> tuple[Value, ...]:
        """What layers read beside the hidden state, made in front of them."""
        made = {value for record in self._recorder.recording.pieces["front"] for value in record.outputs}
        hidden = set(self._hidden.values())
        layers = [records for name, records in self._recorder.recording.pieces.items() if name.startswith("kind")]
        read = dict.fromkeys(value for records in layers for record in records for value in record.inputs)
        return tuple(value for value in read if value in made and value not in hidden)

    def _layer_results(self) -> dict[Value, str]:
        leaves = (leaf for output in self._outputs.values() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        return {self._recorder.value(leaf): HIDDEN for leaf in leaves}

    def _graph(self, records: list[Record], results: tuple[Value, ...], extra: Mapping[Value, str], prefix: str = "") -> OpGraph:
        names = {**self._recorder.recording.names, **extra}
        rough = draft(records, results, frozenset(self._recorder.parameters))
        merge_patterns(rough)
        return op_graph(rough, names, lambda name: name.removeprefix(prefix))


def _caches(traced: fx.GraphModule, kinds: Mapping[str, int]) -> bool:
    """Whether layers are handed the cache; without one there is no past."""
    cache = placeholders(traced.graph)["past_key_values"]
    return any(user.op == "call_module" and user.target in kinds for user in cache.users)
