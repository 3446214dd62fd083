"""Modules on the same tensors: copies, and sets of experts on a path that suits runs on shapes alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
EXPERTS = "batched_mm"  # transformers' way through a set of experts in which no shape depends on values


def copy_sharing_tensors(module: M) -> M:
    """A copy of the module tree on the same parameters and buffers: what is replaced in it leaves the original alone."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())})


@contextmanager
def experts_by_shape(module: nn.Module) -> Iterator[None]:
    """Let the module's experts take the path whose shapes do not depend on values."""
    configs = {id(found): found for inner in module.modules() if (found := getattr(inner, "config", None)) is not None}
    changed = [(config, config._experts_implementation_internal) for config in configs.values() if _has_choice(config)]
    try:
        for config, _ in changed:
            config._experts_implementation_internal = EXPERTS
        yield
    finally:
        for config, before in changed:
            config._experts_implementation_internal = before


def _has_choice(config: Any) -> bool:
    return hasattr(config, "_experts_implementation_internal")
