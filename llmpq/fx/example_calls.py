"""ExampleCalls: what the nodes of a graph return in calls of unlike sizes, computed on shapes alone and only where asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmpq.fx import ops
from llmpq.fx.modules import experts_by_shape

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError, KeyError)
CHECKS = ("aten::all", "aten::_is_all_true")
_WITHOUT_RESULT = object()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one call: sequences, new tokens of each, tokens in the cache."""

    batch: int
    tokens: int
    past: int


CALLS = (Sizes(2, 5, 0), Sizes(3, 1, 7), Sizes(1, 1, 0))  # a prefill, a step of decoding, a prompt of one token


class ExampleCalls:
    """`root` is what the graph's modules and parameters are looked up in; no weight is read, none is needed."""

    def __init__(self, root: nn.Module) -> None:
        self._calls = tuple(_Call(root, sizes) for sizes in CALLS)

    def results(self, node: fx.Node) -> tuple[Any, ...] | None:
        """What the node returns in each of the calls, fake tensors for tensors; None where values decide, not shapes."""
        found = [call.result(node) for call in self._calls]
        return None if any(result is _WITHOUT_RESULT for result in found) else tuple(found)

    def agreed(self, node: fx.Node) -> bool | int | float | str | None:
        """The plain value that the node has in every call; None where it has none, or where calls differ."""
        results = self.results(node) or (None,)
        plain = isinstance(results[0], bool | int | float | str)
        return results[0] if plain and all(result == results[0] for result in results) else None

    def reads_value(self, source: fx.Node, user: fx.Node) -> bool:
        """Whether a module that `user` calls reads, or returns, the contents of what `source` hands it; True when in doubt."""
        return self._calls[0].reads_value(source, user)

    def shared_reads(self, layers: Sequence[fx.Node]) -> dict[fx.Node, frozenset[fx.Node]]:
        """Layer -> the layers whose entries of a shared place (llmpq.fx.ops.shared_states) it reads."""
        call = self._calls[0]
        for layer in layers:
            call.result(layer)
        return {layer: frozenset(call.shared[layer]) for layer in layers if layer in call.shared}


class _Call:
    def __init__(self, root: nn.Module, sizes: Sizes) -> None:
        self._root, self._sizes = root, sizes
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._results: dict[fx.Node, Any] = {}
        self._stand_ins: dict[Tensor, Tensor] = {}
        self.shared: dict[fx.Node, set[fx.Node]] = {}
        self.running: fx.Node | None = None

    def result(self, node: fx.Node) -> Any:
        waiting = [node]
        while waiting:
            missing = [source for source in waiting[-1].all_input_nodes if source not in self._results]
            if missing:
                waiting.extend(missing)
            else:
                last = waiting.pop()
                if last not in self._results:
                    self._results[last] = self._computed(last)
        return self._results[node]

    def reads_value(self, source: fx.Node, user: fx.Node) -> bool:
        given = self.result(source)
        if any(self.result(node) is _WITHOUT_RESULT for node in user.all_input_nodes) or not isinstance(given, Tensor):
            return True
        args, kwargs = self._arguments(user)
        try:
            with torch.no_grad(), self._fake, _Reads(given) as reads:
                returned = self._call_module(user, args, kwargs)
        except FAILURES:
            return True
        return reads.found or any(leaf is given for leaf in tree_leaves(returned))

    def _computed(self, node: fx.Node) -> Any:
        if any(self._results[source] is _WITHOUT_RESULT for source in node.all_input_nodes):
            return _WITHOUT_RESULT
        args, kwargs = self._arguments(node)
        try:
            with torch.no_grad(), self._fake:
                return self._run(node, args, kwargs)
        except FAILURES:
            return _WITHOUT_RESULT

    def _arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: Any = fx.map_arg(node.args, self._results.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, self._results.__getitem__)
        return args, kwargs

    def _run(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if node.op == "placeholder":
            return self._input(str(node.target))
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            found = getattr(self._root.get_submodule(owner), name)
            return self._stand_in(found) if isinstance(found, Tensor) else found
        if node.op == "call_module":
            self.running = node
            with _NoValues():
                return self._call_module(node, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = node.target
        if function is ops.attention_mask:
            with _NoValues():
                return function(*args, **kwargs)
        return _Place(self) if function is ops.shared_states else function(*args, **kwargs)

    def _call_module(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        module = self._root.get_submodule(str(node.target))
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        stand_ins = {name: self._stand_in(tensor) for name, tensor in tensors.items()}
        with experts_by_shape(module):
            return functional_call(module, stand_ins, args, dict(kwargs))

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if tensor not in self._stand_ins:
            self._stand_ins[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return self._stand_ins[tensor]

    def _input(self, name: str) -> Any:
        sizes = self._sizes
        if name == "past_key_values":
            return _Cache(sizes.past)
        extent = sizes.past + sizes.tokens if name == "attention_mask" else sizes.tokens
        return torch.empty(sizes.batch, extent, dtype=torch.long)


class _Cache:
    """A cache that holds so many tokens, and nothing else."""

    def __init__(self, past: int) -> None:
        self._past = past

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._past

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._extended(key), self._extended(value)

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        return self._extended(index_key)

    def _extended(self, new: Tensor) -> Tensor:
        *outer, tokens, size = new.shape
        return new.new_empty(*outer, self._past + tokens, size)


class _Place(dict[Any, Any]):
    """A shared place that notes who reads whose entry."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self._call = call
        self._writers: dict[Any, fx.Node] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._call.running is not None:
            self._writers[key] = self._call.running
        super().__setitem__(key, value)

    def __getitem__(self, key: Any) -> Any:
        if self._call.running is not None and key in self._writers:
            self._call.shared.setdefault(self._call.running, set()).add(self._writers[key])
        return super().__getitem__(key)


class _NoValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside a module a branch on a value sees zero, a check of all values that it holds; the result has the same shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._checks: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return id(args[0]) in self._checks or (args[0].dtype.is_floating_point and 0.0)
        out = func(*args, **(kwargs or {}))
        if func._schema.name in CHECKS:
            self._checks[id(out)] = out
        return out


class _Reads(_NoValues):  # type: ignore[no-untyped-call]
    """Notes whether an operator takes the contents of `given`; the likes of zeros_like take its shape."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self._given = given
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not name.endswith("_like") and not name.startswith("aten::new_"):
            self.found = self.found or any(leaf is self._given for leaf in tree_leaves((args, kwargs)))
        return super().__torch_dispatch__(func, types, args, kwargs)
