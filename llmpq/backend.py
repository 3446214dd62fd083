"""Backends: what runs a plan, by name, each imported when it is used."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llmpq.errors import InputError
from llmpq.generation import Generation, OnToken, SamplingParams
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan

if TYPE_CHECKING:
    from torch import nn

    from llmpq.backends.simulator import SimulatorBackend

BACKENDS: dict[str, str] = {
    "local": "llmpq.backends.local:LocalBackend",
    "distributed": "llmpq.backends.distributed:DistributedBackend",
    "processes": "llmpq.backends.processes:ProcessesBackend",
}
# Tell what would happen instead of running anything.
PREDICTORS: dict[str, str] = {"simulator": "llmpq.backends.simulator:SimulatorBackend"}


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
    found: type[Backend] = _load("backend", name, BACKENDS)
    return found


def load_predictor(name: str) -> "type[SimulatorBackend]":
    """The predictor of that name; raises InputError that lists the known ones."""
    found: type[SimulatorBackend] = _load("predictor", name, PREDICTORS)
    return found


def _load(what: str, name: str, known: dict[str, str]) -> Any:
    if name not in known:
        raise InputError(f"{what} {name!r} is unknown; known are {', '.join(known)}")
    module, attribute = known[name].split(":")
    return getattr(import_module(module), attribute)
