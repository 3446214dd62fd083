"""Probes: whether a fused operation computes what the module computes that it would stand for, tried on random inputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

SEED = 0
EQUAL = 0.95  # of the elements to the last bit: sums of another order move one of a thousand, another formula most of them
NEAR = 2**-6  # of the largest element: two roundings of bfloat16
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError, KeyError)


def agree(found: Tensor, wanted: Tensor, equal: float = EQUAL) -> bool:
    """Whether both are the same but for rounding."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype or not bool(wanted.isfinite().all()):
        return False
    near = (found.double() - wanted.double()).abs() <= NEAR * wanted.double().abs().max()
    return bool(near.all()) and float((found == wanted).double().mean()) >= equal


@contextmanager
def probing() -> Iterator[torch.Generator]:
    """Inside, nothing learns; the generator draws the inputs."""
    with torch.inference_mode():
        yield torch.Generator().manual_seed(SEED)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).bfloat16()


def takes_one_tensor(module: nn.Module) -> bool:
    """Whether one positional argument is all that the module needs."""
    needed = [found for found in signature(module.forward).parameters.values() if found.default is Parameter.empty]
    return len(needed) == 1 and needed[0].kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def use_instead(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let calls of the module, which stays where and what it is, run `forward`."""
    vars(module)["forward"] = forward
