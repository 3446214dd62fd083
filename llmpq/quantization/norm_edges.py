"""Norm edges: the norms of a layer that linears alone read, found by watching one call of the layer."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def norm_edges(layer: nn.Module, linears: Collection[str], run: Callable[[], Any]) -> dict[str, tuple[str, ...]]:
    """Path of a norm -> paths of the linears that read its output, where they are all among `linears` and nothing else reads it.

    A norm is a module without children whose only parameters are vectors. run: calls the layer once. Questions for shape, type
    and device do not count as reading.
    """
    watch = _Watch()
    handles = [
        module.register_forward_hook(watch.written_by(path))
        for path, module in layer.named_modules()
        if next(module.children(), None) is None and _has_vectors_only(module)
    ]
    handles += [
        module.register_forward_pre_hook(watch.read_by(path))
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with watch:
        run()
    for handle in handles:
        handle.remove()
    return {
        norm: tuple(readers)
        for norm, readers in watch.readers.items()
        if readers and len(readers) == watch.uses[norm] and set(readers) <= set(linears)
    }


def _has_vectors_only(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)


class _Watch(TorchFunctionMode):
    """Counts the operations that read what norms wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[str, list[str]] = {}
        self.uses: dict[str, int] = {}
        self._written: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that no other one gets its identity

    def written_by(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._written[id(output)] = (path, output)
                self.readers[path], self.uses[path] = [], 0

        return hook

    def read_by(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            written = self._written.get(id(inputs[0]))
            if written is not None:
                self.readers[written[0]].append(path)

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            for leaf in tree_leaves((args, kwargs or {})):
                if id(leaf) in self._written:
                    self.uses[self._written[id(leaf)][0]] += 1
        return result
