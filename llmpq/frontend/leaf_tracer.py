"""LeafTracer: torch.fx tracing that stops at decoder layers, and at modules before and behind them that it cannot read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

RANK = {"input_ids": 2, "attention_mask": 2, "position_ids": 2}
FAILURES = (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, IndexError)
_FACTORIES = ("arange", "zeros", "ones", "full", "eye")


class LeafTracer(fx.Tracer):
    """Decoder layers, childless modules, and modules without decoder layers whose code cannot be traced, are called whole."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(param_shapes_constant=True)
        self._layers = frozenset(map(id, layers))

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._installed = frozenset(map(id, root.modules()))
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._layers or next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(m) not in self._installed:  # an activation that a Python module holds
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

    def create_arg(self, a: Any) -> Any:
        """An empty mapping, where a model without shared keys and values passes the place for them, stands for itself."""
        return {} if isinstance(a, Mapping) and not a else super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _RankedProxy(node, self) if node.op == "placeholder" and node.name in RANK else super().proxy(node)

    def _forget_behind(self, last: fx.Node) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            self.graph.erase_node(node)


class _RankedProxy(fx.Proxy):
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
