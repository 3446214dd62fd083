"""LeafTracer: torch.fx tracing that stops at decoder layers, and at modules before and behind them that it cannot read."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import fx, nn

from llmpq.fx import ops
from llmpq.fx.example_calls import ExampleCalls

RANK = {"input_ids": 2, "attention_mask": 2, "position_ids": 2}
FAILURES = (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, IndexError)
_FACTORIES = ("arange", "zeros", "ones", "full", "eye")


class LeafTracer(fx.Tracer):
    """Decoder layers, childless modules, and modules without decoder layers whose code cannot be traced, are called whole.

    A branch on sizes, or a loop over them, is followed where calls of unlike sizes agree on it (ExampleCalls).
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(param_shapes_constant=True)
        self._layers = frozenset(map(id, layers))
        self._places: dict[int, tuple[Mapping[str, Any], fx.Proxy]] = {}  # by id of the mapping, which is kept alive
        self._computing = False  # examples: what modules call and read then is no part of the graph

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._installed = frozenset(map(id, root.modules()))
        self._calls = ExampleCalls(root)
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._layers or next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._computing or id(m) not in self._installed:  # an activation that a Python module holds
            return forward(*args, **kwargs)
        last, stack = next(reversed(self.graph.nodes)), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except FAILURES:
            if not self._layers.isdisjoint(map(id, m.modules())):
                raise
            self._forget_behind(last)
            self.module_stack = stack
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        with self._computes():
            agreed = self._calls.agreed(obj.node)
        return super().to_bool(obj) if agreed is None else bool(agreed)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        length = self.length(obj)
        if length is None:
            return super().iter(obj)
        return iter([self.create_proxy("call_function", operator.getitem, (obj, place), {}) for place in range(length)])

    def length(self, obj: fx.Proxy) -> int | None:
        """Of a shape, or of several results; None where calls differ, and of tensors."""
        with self._computes():
            results = self._calls.results(obj.node) or ()
        lengths = {len(result) if isinstance(result, tuple | list) else None for result in results}
        return lengths.pop() if len(lengths) == 1 else None

    @contextmanager
    def _computes(self) -> Iterator[None]:
        before, self._computing = self._computing, True
        try:
            yield
        finally:
            self._computing = before

    def create_arg(self, a: Any) -> Any:
        """An empty mapping of its own class, where layers put what later ones read, is a node; numpy's numbers are Python's."""
        if isinstance(a, Mapping) and not isinstance(a, dict) and not a:
            return self._place(a).node
        return super().create_arg(a.item() if isinstance(a, numpy.generic) else a)

    def _place(self, a: Mapping[str, Any]) -> fx.Proxy:
        if id(a) not in self._places:
            self._places[id(a)] = (a, self.create_proxy("call_function", ops.shared_states, (), {}))
        return self._places[id(a)][1]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _RankedProxy(node, self) if node.op == "placeholder" and node.name in RANK else _Proxy(node, self)

    def _forget_behind(self, last: fx.Node) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            self.graph.erase_node(node)


class _Sized(fx.Proxy):
    """len(…) where calls of unlike sizes agree on it."""

    def __len__(self) -> int:
        tracer = self.tracer
        length = tracer.length(self) if isinstance(tracer, LeafTracer) else None
        return fx.Proxy.__len__(self) if length is None else length


class _Attribute(_Sized, fx.proxy.Attribute):
    """shape and the like."""


class _Proxy(_Sized):
    """Its attributes have a length, too."""

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Attribute(self, k)


class _RankedProxy(_Proxy):
    """Token ids, their mask or their positions, integers [batch, tokens]: models branch on type and rank, and unpack shapes."""

    @property
    def ndim(self) -> int:
        return RANK[self.node.name]

    def dim(self) -> int:
        return self.ndim

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    @property
    def shape(self) -> tuple[fx.Proxy, ...]:
        return tuple(self.tracer.create_proxy("call_method", "size", (self, axis), {}) for axis in range(self.ndim))

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]


@contextmanager
def traced_factories() -> Iterator[None]:
    """While tracing, torch.arange and the like emit a node where a size is not known yet; for everybody else nothing changes."""
    originals = {name: getattr(torch, name) for name in _FACTORIES}
    try:
        for name, original in originals.items():
            setattr(torch, name, _emitting(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _emitting(original: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda value: found.append(value) if isinstance(value, fx.Proxy) else None)
        if found:
            return found[0].tracer.create_proxy("call_function", original, args, kwargs)
        return original(*args, **kwargs)

    return make
