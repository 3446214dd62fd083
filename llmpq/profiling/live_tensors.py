"""Live tensors: the most bytes that tensors held at once while something ran, operation by operation."""

from collections.abc import Callable, Iterable
from typing import Any, Self

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages that operations return while it is entered, each once, from its first tensor to its last.

    `peak_bytes`: the most at once, with those of `held` tensors that were there before. What kernels allocate inside
    themselves is no tensor and is not seen.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._held: list[Any] = []
        for tensor in held:
            self.note(tensor)
        self.held_bytes = self.peak_bytes = self.alive_bytes()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes())
        return found

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def note(self, tensor: Tensor) -> None:
        """Count a tensor that no operation returned, as long as it lives."""
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage.nbytes():
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]

    def alive_bytes(self) -> int:
        """Of the tensors that live now."""
        self._alive = {key: found for key, found in self._alive.items() if not found[0].expired()}  # type: ignore[no-untyped-call]
        return sum(nbytes for _, nbytes in self._alive.values())
