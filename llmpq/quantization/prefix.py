"""Prefix: what the layers before one layer compute, kept so that many variants of that layer share it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from llmpq.graph import LayerGraph

Prefix = tuple[Any, ...]  # per window, the output of the layer before; empty in front of the first layer


class _Reached(Exception):
    """Carries a layer's output past everything that comes after it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@contextmanager
def resumed(model: nn.Module, graph: LayerGraph, layer: int, output: Any) -> Iterator[None]:
    """Inside the block the layers before `layer` cost nothing: they return `output`, which the last of them computed."""
    skipped = [model.get_submodule(name) for name in graph.layer_names[:layer]]
    for module in skipped:
        module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for module in skipped:
            del module.forward


def logits_of(model: nn.Module, graph: LayerGraph, layer: int, prefix: Prefix, windows: Tensor) -> Iterator[Tensor]:
    """[tokens, vocabulary] of each window, computed from `layer` on."""
    for index, window in enumerate(windows):
        with resumed(model, graph, layer, prefix[index] if layer else None):
            logits: Tensor = model(input_ids=window[None], use_cache=False).logits
        yield logits[0]


def next_prefix(model: nn.Module, graph: LayerGraph, layer: int, prefix: Prefix, windows: Tensor) -> Prefix:
    """The prefix of the layer after `layer`; only that layer runs."""

    def stop(module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
        raise _Reached(output)

    handle = model.get_submodule(graph.layer_names[layer]).register_forward_hook(stop)
    outputs = []
    try:
        for index, window in enumerate(windows):
            try:
                with resumed(model, graph, layer, prefix[index] if layer else None):
                    model(input_ids=window[None], use_cache=False)
            except _Reached as reached:
                outputs.append(reached.output)
    finally:
        handle.remove()
    return tuple(outputs)
