"""Transfer: what a stage hands to the next one; `send` and `recv` are its nodes in the stages' graphs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from llmpq.errors import BackendError

Shape = tuple[str | int, ...]
HIDDEN = ("rows", "tokens")  # the dimensions of a hidden state that only a call knows: sequences, and positions of each


@dataclass(frozen=True, slots=True)
class Transfer:
    """`value`, a node of stage `source`, as stage `target` receives it; dimensions by name differ from call to call."""

    value: str
    source: int
    target: int
    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"{self.value} [{shape}] {str(self.dtype).removeprefix('torch.')}, stage {self.source} to {self.target}"

    def num_bytes(self, rows: int, tokens: int) -> int:
        sizes = dict(zip(HIDDEN, (rows, tokens)))
        return prod(sizes[size] if isinstance(size, str) else size for size in self.shape) * self.dtype.itemsize


def send(value: Tensor, name: str, source: int, target: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """`value` as it leaves stage `source`: in the transfer's dtype. Raises BackendError when it is of another shape."""
    transfer = Transfer(name, source, target, shape, dtype)
    _require(value.shape, transfer, f"stage {source} would send")
    return value.to(dtype)


def recv(value: Tensor, name: str, source: int, target: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """`value` as it enters stage `target`. Raises BackendError for anything but what the transfer announces."""
    transfer = Transfer(name, source, target, shape, dtype)
    _require(value.shape, transfer, f"stage {target} received")
    if value.dtype != dtype:
        raise BackendError(f"stage {target} received {value.dtype}, expected {transfer}; run the stages of one compiled model")
    return value


def transfers(stages: Sequence[fx.GraphModule]) -> Iterator[Transfer]:
    """What every stage sends, in order."""
    for stage in stages:
        for node in stage.graph.nodes:
            if node.target is send:
                yield transfer_of(node)


def transfer_of(node: fx.Node) -> Transfer:
    """What a send or recv node says."""
    said: Any = node.kwargs
    return Transfer(said["name"], said["source"], said["target"], tuple(said["shape"]), said["dtype"])


def send_as(stage: fx.GraphModule, dtype: torch.dtype) -> None:
    """Let the stage, which is changed, send and receive another dtype: for a run in fp32."""
    for node in stage.graph.nodes:
        if node.target in (send, recv):
            node.kwargs = {**node.kwargs, "dtype": dtype}
    stage.recompile()


def _require(found: Sequence[int], transfer: Transfer, subject: str) -> None:
    fits = len(found) == len(transfer.shape) and all(
        isinstance(expected, str) or size == expected for size, expected in zip(found, transfer.shape)
    )
    if not fits:
        raise BackendError(f"{subject} {list(found)}, expected {transfer}; run the stages of one compiled model")
