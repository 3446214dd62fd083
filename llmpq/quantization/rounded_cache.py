"""Rounded caches: transformers models whose attention sees keys and values as a cache at some precision holds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmpq.precision import CachePrecision
from llmpq.quantization.cache_codecs import as_cached


def round_cache(model: nn.Module, precision: CachePrecision) -> RemovableHandle:
    """From now on, in every call that brings no cache of its own."""

    def hand_over(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if precision == "16" or kwargs.get("past_key_values") is not None:
            return args, kwargs
        return args, {**kwargs, "past_key_values": _rounding_cache(precision), "use_cache": True}

    return model.register_forward_pre_hook(hand_over, with_kwargs=True)


@contextmanager
def rounded_cache(model: nn.Module, precision: CachePrecision) -> Iterator[None]:
    """Inside the block."""
    handle = round_cache(model, precision)
    try:
        yield
    finally:
        handle.remove()


def _rounding_cache(precision: CachePrecision) -> Any:
    """An empty cache of transformers that rounds what it is given."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    keep = cache.update

    def update(key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        held: tuple[Tensor, Tensor] = keep(as_cached(key, precision), as_cached(value, precision), *args, **kwargs)
        return held

    cache.update = update
    return cache
