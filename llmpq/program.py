"""Program: the state of a compilation; passes take one and return a new one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.costs import CostTable
from llmpq.costs.profile import Profile
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.layer_option import LayerOption
from llmpq.plan import ComputeDtype, Plan
from llmpq.sensitivity import SensitivityTable
from llmpq.solver.rules import Rule
from llmpq.workload import Workload

if TYPE_CHECKING:
    from torch.fx import GraphModule


MOST_RANKS = 8  # devices of a tensor-parallel group


@dataclass(frozen=True, slots=True)
class Target:
    """The quality asked for: a budget in nats per token (`explicit`: the user named it), or theta seconds per nat per token."""

    budget: float | None = 0.01980262729617973  # ln(1.02): --max-ppl-increase 0.02
    theta: float | None = None
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    cluster: Cluster
    workload: Workload
    precisions: tuple[LayerOption, ...]
    target: Target = Target()
    rules: tuple[Rule, ...] = ()
    engine: str = "local"
    gap: float = 1e-3
    time_limit_s: float = 60.0
    replicas: int = 1  # the most pipelines
    tensor_parallel: int = 1  # the most devices of a group
    profile: Profile | None = None
    queue: bool = False  # whether sequences of a batch may wait while others are in the cache


@dataclass(frozen=True, slots=True)
class Calibration:
    """Where indicators look: the model's directory, and the token ids of the calibration text."""

    checkpoint: Path
    token_ids: tuple[int, ...]
    text_name: str


@dataclass(frozen=True, slots=True)
class Program:
    """Everything known so far; None where no pass has provided it yet."""

    graph: LayerGraph
    request: Request
    calibration: Calibration | None = None
    compute_dtype: ComputeDtype | None = None
    costs: CostTable | None = None
    sensitivity: SensitivityTable | None = None
    plan: Plan | None = None
    graph_module: "GraphModule | None" = None
    stages: "tuple[GraphModule, ...] | None" = None
    notices: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether `name`, a field that passes provide, is there."""
        return getattr(self, name) is not None

    def require(self, name: str) -> Any:
        """The field, which a pass before this one must have provided."""
        value = getattr(self, name)
        if value is None:
            raise KeyError(name)
        return value
