"""Calls: which linear modules a layer calls as modules, and whose weights it reads in another way."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(slots=True)
class Calls:
    """Paths of linear modules; `running`: the modules that run now, innermost last."""

    called: set[str] = field(default_factory=set)
    read_outside: set[str] = field(default_factory=set)
    running: list[str] = field(default_factory=list)

    @property
    def replaceable(self) -> frozenset[str]:
        """Linears that another module can stand for: nothing but their own call reads the weight."""
        return frozenset(self.called - self.read_outside)


def watched_calls(layer: nn.Module) -> Calls:
    """Notes of what `layer`, a copy that is thrown away, does when it runs."""
    calls = Calls()
    for path, module in layer.named_modules():
        _watch(path, module, calls)
    return calls


def _watch(path: str, module: nn.Module, calls: Calls) -> None:
    def enter(*_: Any) -> None:
        calls.running.append(path)

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        calls.running.pop()
        if _is_a_product(module, output):
            calls.called.add(path)

    if isinstance(module, nn.Linear):
        module.__class__ = _noticing(type(module), path, calls)
    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _is_a_product(module: nn.Module, output: Any) -> bool:
    """Whether the call may be y = W x + b and nothing else: a router may be a linear that also chooses, and returns more."""
    return isinstance(module, nn.Linear | Conv1D) and isinstance(output, Tensor)


def _noticing(linear: type[nn.Linear], path: str, calls: Calls) -> type[nn.Linear]:
    """The class, with notes of reads of `weight` while another module runs."""

    class Noticing(linear):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            if name == "weight" and calls.running and calls.running[-1] != path:
                calls.read_outside.add(path)
            return super().__getattribute__(name)

    return Noticing
