"""Backends: what runs a plan, by name, each imported when it is used."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, Protocol

from llmpq.errors import InputError
from llmpq.generation import Generation, OnToken, SamplingParams
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan

if TYPE_CHECKING:
    from torch import nn

BACKENDS: dict[str, str] = {
    "local": "llmpq.backends.local:LocalBackend",
    "distributed": "llmpq.backends.distributed:DistributedBackend",
    "processes": "llmpq.backends.processes:ProcessesBackend",
}


class Backend(Protocol):
    """Runs the stages of one plan. Ask `unsupported` before making one.

    `load_stage(j)` gives the module of stage j and is called once for each stage that lives in this process;
    `compute_dtype` is that of the modules: "float32" in reference mode, None for the plan's own.
    """

    name: ClassVar[str]

    def __init__(
        self, plan: Plan, graph: LayerGraph, load_stage: "Callable[[int], nn.Module]", compute_dtype: ComputeDtype | None = None
    ) -> None: ...

    @classmethod
    def unsupported(cls, plan: Plan) -> list[str]:
        """Why this backend cannot run the plan, one sentence each; empty when it can."""

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, on_token: OnToken | None = None
    ) -> list[Generation]:
        """Continue every prompt; `on_token(sequence, token)` is called as tokens come, per sequence in order."""

    def log_probs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of the tokens of each continuation, by the prefill and decode path of generation."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of tokens 1, 2, ... of each sequence given those before them, in one pass."""


def load_backend(name: str) -> type[Backend]:
    """The backend of that name; raises InputError that lists the known ones."""
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is unknown; known are {', '.join(BACKENDS)}")
    module, attribute = BACKENDS[name].split(":")
    found: type[Backend] = getattr(import_module(module), attribute)
    return found
