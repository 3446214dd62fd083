"""One run of one layer per kind: what its linears read, and what it writes to the KV cache."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from llmpq.errors import TraceError
from llmpq.frontend.tracing import INPUTS
from llmpq.fx.modules import copy_sharing_tensors

TOKENS = 2


@dataclass(frozen=True, slots=True)
class LayerRun:
    """What one layer did: `inputs` has a number per module path, equal where two linears read the same tensor.

    `read_outside`: linears whose weight other modules read, which therefore stays as it is. `attention`: path of the submodule
    that wrote keys [batch, num_kv_heads, tokens, head_dim] and values (of value_dim) to the KV cache; where the layer is given
    none, that computed attention, with num_kv_heads 0. `hidden_size`: of its output.
    """

    inputs: dict[str, int]
    read_outside: frozenset[str]
    attention: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    index_dim: int
    hidden_size: int


def run_layers(traced: fx.GraphModule, kinds: dict[str, int]) -> dict[int, LayerRun]:
    """Kind -> what its first layer did, for `kinds`: layer path -> kind. Needs no weights: parameters may be on meta."""
    interpreter = _LayerInterpreter(traced, kinds)
    device = next(traced.parameters()).device
    ones = torch.ones(1, TOKENS, dtype=torch.long, device=device)
    values = {"input_ids": ones, "attention_mask": ones, "position_ids": ones, "past_key_values": interpreter.cache}
    try:
        with torch.no_grad():
            interpreter.run(*(values[name] for name in INPUTS))
    except RuntimeError as error:
        raise TraceError(
            f"the layers of {type(traced).__name__} cannot be run on shapes alone: {str(error).splitlines()[0]}"
        ) from error
    return interpreter.runs


def has_experts(module: nn.Module) -> bool:
    """Whether the module owns the weights of a set of experts: 3-D parameters."""
    return any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))


class _Recorder:
    """Stands for the KV cache: remembers which submodule writes what."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.written: list[tuple[str, tuple[int, ...], int]] = []
        self.index_dim = 0
        self.read_outside: set[str] = set()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.written.append((self.running[-1], tuple(key.shape), value.shape[-1]))
        return key, value

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        self.index_dim = index_key.shape[-1]
        return index_key


class _AttentionObserver(TorchFunctionMode):
    """Sees which submodule computes attention, and the queries [batch, num_heads, tokens, head_dim] of it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self.path, self.num_heads, self.head_dim = "", 1, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and len(args) > 2:
            query = args[0]
            self.path, self.num_heads, self.head_dim = self._recorder.running[-1], query.shape[1], query.shape[-1]
        return func(*args, **(kwargs or {}))


class _LayerInterpreter(fx.Interpreter):
    """Runs the graph, but of each kind only the first layer; the others return what that one returned."""

    def __init__(self, traced: fx.GraphModule, kinds: dict[str, int]) -> None:
        super().__init__(traced)
        self.cache = _Recorder()
        self.runs: dict[int, LayerRun] = {}
        self._kinds = kinds
        self._outputs: dict[int, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = self._kinds.get(target)
        if kind is None:
            return super().call_module(target, args, kwargs)
        if kind not in self._outputs:
            found = self.module.get_submodule(target)
            layer = copy_sharing_tensors(found).to(next(found.parameters()).device)  # buffers too: routers have some
            self.runs[kind], self._outputs[kind] = _run_layer(target, layer, self.cache, args, kwargs)
        return self._outputs[kind]


def _run_layer(
    target: str, layer: nn.Module, cache: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[LayerRun, Any]:
    read: dict[str, Tensor] = {}
    for path, module in layer.named_modules():
        _watch(path, module, cache, read)
    cache.written.clear()
    cache.index_dim = 0
    cache.read_outside.clear()
    with _AttentionObserver(cache) as seen:
        output = layer(*args, **kwargs)
    caches = any(value is cache for value in (*args, *kwargs.values()))
    if len(cache.written) != caches:
        raise TraceError(f"layer {target} wrote the KV cache {len(cache.written)} times; expected once (attention layers only)")
    written = cache.written[0] if caches else (seen.path, (1, 0, TOKENS, seen.head_dim), 0)
    attention, (_, num_kv_heads, _, head_dim), value_dim = written
    numbers: dict[int, int] = {}
    inputs = {path: numbers.setdefault(id(tensor), len(numbers)) for path, tensor in read.items()}
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    outside = frozenset(cache.read_outside)
    sizes = (seen.num_heads, num_kv_heads, head_dim, value_dim, cache.index_dim, hidden.shape[-1])
    return LayerRun(inputs, outside, attention, *sizes), output


def _noticing(linear: type[nn.Linear], path: str, cache: _Recorder) -> type[nn.Linear]:
    """The class, with notes of reads of `weight` while another module runs."""

    class Noticing(linear):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name == "weight" and cache.running[-1:] != [path]:
                cache.read_outside.add(path)
            return super().__getattribute__(name)

    return Noticing


def _watch(path: str, module: nn.Module, cache: _Recorder, read: dict[str, Tensor]) -> None:
    """Keep the stack of running submodules, and (alive, so that ids stay distinct) what each linear reads.

    Experts route by value, which meta tensors do not have: they return a tensor of their input's shape.
    """

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        cache.running.append(path)
        if isinstance(module, nn.Linear | Conv1D):
            read[path] = args[0]

    def leave(*_: Any) -> None:
        cache.running.pop()

    if isinstance(module, nn.Linear):
        module.__class__ = _noticing(type(module), path, cache)
    if has_experts(module):
        module.forward = lambda hidden, *args, **kwargs: torch.empty_like(hidden)
    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)
