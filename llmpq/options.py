"""Options: what a plan can be asked for beside model, cluster and workload."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log1p
from os import PathLike
from typing import TYPE_CHECKING, TypedDict

from llmpq.errors import InputError
from llmpq.hardware.support import engines, tensor_parallel_sizes
from llmpq.precision import parse_cache_precision
from llmpq.program import MOST_RANKS, Target

if TYPE_CHECKING:
    from llmpq.passmanager import Pass

MOST_REPLICAS = 8
QUANTIZERS = ("auto", "gptq", "rtn")
AUTO_CACHE = "auto"


class PlanningOptions(TypedDict, total=False):
    """The keyword arguments of `llmpq.compile` and `llmpq.compiler.plan`; `Options` has their defaults and meaning."""

    max_ppl_increase: float | None
    sensitivity_budget: float | None
    theta: float | None
    precisions: str | tuple[str, ...]
    granularity: str
    constraints: tuple[str, ...] | list[str]
    engine: str
    indicator: str
    sensitivity: str | PathLike[str] | None
    calibration: str | PathLike[str] | None
    tune: str | PathLike[str] | None
    report: str | PathLike[str] | None
    quality_check: bool
    profile: str | PathLike[str] | None
    quantizer: str
    assign: str
    pipeline: str | None
    passes: "Sequence[Pass | str]"
    gap: float
    time_limit_s: float
    kv_precision: str
    replicas: int
    queue: bool
    tensor_parallel: int | None


@dataclass(frozen=True, slots=True)
class Options:
    """max_ppl_increase: 0.02 allows 2 % more perplexity (the default); sensitivity_budget: the same in nats per token;
    theta: seconds per nat per token in the objective. The three exclude each other.

    precisions: what layers may be kept at, "16,w8a8" or a tuple; w4a16/w8a8 is w4a16 for the attention and w8a8 for the mlp.
    granularity: layer, or part: then also mixtures of the precisions for attention and mlp, the few that gain most.
    constraints: rules such as "layers[0:2].bits >= 8".
    indicator: fisher, variance, hessian, measured, random, prior, or auto: fisher where there are weights, else the prior.
    sensitivity: a file with a table to use instead. calibration: a text. tune, report: texts that the
    quantized model is measured on; quality_check: whether it is. Bundled texts by default.
    profile: a file of `llmpq profile`, whose times replace tables and roofline for devices of its type.
    quantizer: gptq, rtn (round to nearest) or auto: gptq where a tokenizer reads the calibration text.
    assign: the assignment pass. pipeline: all passes as text instead, and then no indicator or assign beside it.
    passes: extra lowering passes, which change what runs. gap: relative optimality gap; time_limit_s: seconds of search.
    replicas: the most pipelines that share the requests out between them, 1 to 8.
    kv_precision: of keys and values in the cache: 16, int8 (a scale for each token and head), fp8, or auto: the fastest plan.
    queue: sequences of a batch may wait while others are in the cache, as many at once as the plan says (resident).
    tensor_parallel: the most devices of a group that runs a stage together, 1 to 8; None: 8 where the engine has groups.
    """

    max_ppl_increase: float | None = None
    sensitivity_budget: float | None = None
    theta: float | None = None
    precisions: str | tuple[str, ...] = ("16", "w8a8", "w8a16", "w4a16")
    granularity: str = "layer"
    constraints: tuple[str, ...] | list[str] = ()
    engine: str = "local"
    indicator: str = "auto"
    sensitivity: str | PathLike[str] | None = None
    calibration: str | PathLike[str] | None = None
    tune: str | PathLike[str] | None = None
    report: str | PathLike[str] | None = None
    quality_check: bool = True
    profile: str | PathLike[str] | None = None
    quantizer: str = "auto"
    assign: str = "assign-joint"
    pipeline: str | None = None
    passes: "Sequence[Pass | str]" = ()
    gap: float = 1e-3
    time_limit_s: float = 60.0
    kv_precision: str = "16"
    replicas: int = 1
    queue: bool = False
    tensor_parallel: int | None = None

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise InputError(f"quantizer {self.quantizer!r} is unknown; known are {', '.join(QUANTIZERS)}")
        if self.pipeline is not None and (self.assign, self.indicator) != ("assign-joint", "auto"):
            raise InputError("--passes excludes --assign and --indicator; name them in it: estimate-sensitivity{indicator=prior}")
        if not 0 <= self.gap < inf:
            raise InputError(f"--gap is {self.gap}; it must be a finite number, 0 or more")
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise InputError(f"--replicas is {self.replicas}; it is the most pipelines of a plan, 1 to {MOST_REPLICAS}")
        if self.kv_precision != AUTO_CACHE:
            parse_cache_precision(self.kv_precision)
        if not 1 <= self.group_size <= MOST_RANKS:
            raise InputError(f"--tensor-parallel is {self.tensor_parallel}; it is the most devices of a group, 1 to {MOST_RANKS}")
        if self.group_size > 1 and self.engine in engines() and not tensor_parallel_sizes(self.engine):
            raise InputError(
                f"--tensor-parallel {self.tensor_parallel}: engine {self.engine} splits no layers; use --engine vllm"
            )
        if not 0 < self.time_limit_s < inf:
            raise InputError(f"--time-limit is {self.time_limit_s}; it must be a finite number of seconds above 0")

    @property
    def group_size(self) -> int:
        """The most devices of a tensor-parallel group."""
        if self.tensor_parallel is not None:
            return self.tensor_parallel
        return MOST_RANKS if self.engine in engines() and tensor_parallel_sizes(self.engine) else 1

    @property
    def target(self) -> Target:
        """The quality target; more than one quality option, or one that is negative or not finite, is an InputError."""
        given = {
            "--max-ppl-increase": self.max_ppl_increase,
            "--sensitivity-budget": self.sensitivity_budget,
            "--theta": self.theta,
        }
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)} exclude each other; give one quality option")
        for name, value in named.items():
            if not 0 <= value < inf:
                raise InputError(f"{name} is {value}; it must be a finite number, 0 or more")
        if self.theta is not None:
            return Target(budget=None, theta=self.theta, explicit=True)
        if self.sensitivity_budget is not None:
            return Target(budget=self.sensitivity_budget, explicit=True)
        return Target() if self.max_ppl_increase is None else Target(budget=log1p(self.max_ppl_increase), explicit=True)
