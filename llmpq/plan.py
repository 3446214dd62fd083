"""Plan: what runs where, at which precision, and what is predicted of it."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from llmpq.errors import InputError
from llmpq.hardware.cluster import Cluster
from llmpq.precision import CachePrecision
from llmpq.serialize import RARE
from llmpq.workload import Batch, Serving, Workload

if TYPE_CHECKING:
    from rich.text import Text

ComputeDtype = Literal["bfloat16", "float16", "float32"]
PLAN_FORMAT = "llmpq-plan-1"
SERVED_TOKENS = 1000.0  # the objective of a plan for serving is the seconds that so many generated tokens take


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers [first_layer, first_layer + len(options)) on one device or group ("L4:0+L4:1"), an option per layer."""

    device: str
    first_layer: int
    options: tuple[str, ...]

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + len(self.options))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages in order, and the number of sequences of a prefill and of a decode micro-batch.

    replica: what it is for where a plan has several pipelines
    resident: sequences of a batch that are in the cache at once while the others wait; None: all
    """

    stages: tuple[Stage, ...]
    prefill_micro_batch: int
    decode_micro_batch: int
    replica: "Replica | None" = field(default=None, metadata=RARE)
    resident: int | None = field(default=None, metadata=RARE)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on one device, or on each of a group, term by term; `capacity` is what the model may use."""

    device: str
    weights: int
    kv_cache: int
    activations: int
    embedding: int
    head: int
    capacity: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.embedding + self.head


@dataclass(frozen=True, slots=True)
class Load:
    """Continuous batching at full load: `running` sequences in `in_flight` batches, steps of at most `token_budget` tokens.

    prefill_tokens: of a step, on average, beside running / in_flight that decode; kv_tokens, kv_blocks: cache that is planned
    for. tpot_s: seconds per token of a sequence; ttft_s: mean seconds to its first token, at most; rates are of all sequences.
    """

    running: int
    in_flight: int
    token_budget: int
    prefill_tokens: float
    kv_tokens: int
    kv_blocks: int
    block_size: int
    tpot_s: float
    ttft_s: float
    tokens_per_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Range:
    """The ends between which nine of ten measurements are expected."""

    low: float
    high: float

    def scaled(self, factor: float) -> "Range":
        return Range(self.low * factor, self.high * factor)

    def hull(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, slots=True)
class Bands:
    """Seconds of a Prediction and tokens per second, each with its 90 % band; latency_s: prefill and decode together.

    When serving, decode_s is of one trip (tpot), prefill_s is nothing and latency_s the same as decode_s.
    """

    prefill_s: Range
    decode_s: Range
    latency_s: Range
    tokens_per_s: Range


@dataclass(frozen=True, slots=True)
class Prediction:
    """Modelled seconds of the whole batch, and bytes per device. `provenance` says what the times rest on.

    `load`: of a serving workload; decode_s is then one trip of a batch through the pipeline, and nothing is prefilled apart.
    `bands`: None in plans that were written before there were any.
    """

    prefill_s: float
    decode_s: float
    memory: tuple[DeviceMemory, ...]
    provenance: str
    load: Load | None = None
    bands: Bands | None = None

    @property
    def latency_s(self) -> float:
        return self.prefill_s + self.decode_s


@dataclass(frozen=True, slots=True)
class Quality:
    """Predicted increase of the loss, nats per token, its budget (None: not limited) and where the figures come from."""

    sensitivity: float
    budget: float | None
    provenance: str


@dataclass(frozen=True, slots=True)
class Replica:
    """One of several pipelines: its share of the requests, what it is planned for, and what is predicted of it alone."""

    weight: float
    workload: Workload
    prediction: Prediction
    quality: Quality
    objective: float


@dataclass(frozen=True, slots=True)
class Optimality:
    """Objective in seconds, a proven lower bound of it, and who found it. `bound` None: a baseline that proves nothing."""

    objective: float
    bound: float | None
    proven: bool
    solver: str

    @property
    def gap(self) -> float | None:
        return None if self.bound is None or self.objective <= 0 else max(0.0, (self.objective - self.bound) / self.objective)


@dataclass(frozen=True, slots=True)
class Plan:
    """engine, precisions, constraints: as they were asked for; no precisions: those that the plan uses. kv_precision: of the KV
    cache, the same in all layers.

    Of several pipelines the prediction is of all together (a batch takes as long as the slowest), the quality of the worst.
    """

    model: str
    compute_dtype: ComputeDtype
    workload: Workload
    cluster: Cluster
    pipelines: tuple[Pipeline, ...]
    prediction: Prediction
    quality: Quality
    optimality: Optimality
    format: str = PLAN_FORMAT
    engine: str = "local"
    precisions: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    kv_precision: CachePrecision = field(default="16", metadata=RARE)

    def __str__(self) -> str:
        """The canonical printout."""
        from llmpq.printing import format_plan

        return format_plan(self)

    def __repr__(self) -> str:
        """What it is in a line; `str` is the whole plan."""
        devices = ", ".join(dict.fromkeys(stage.device for pipeline in self.pipelines for stage in pipeline.stages))
        predicted = f"{self.tokens_per_s:.4g} tokens/s, +{self.quality.sensitivity:.4f} nats per token"
        return f"Plan({self.model!r} on {devices}: {predicted})"

    def __rich__(self) -> "Text":
        """The canonical printout, for rich."""
        from rich.text import Text

        return Text(str(self))

    @property
    def pipeline(self) -> Pipeline:
        """The only pipeline. Raises InputError where there are several."""
        if len(self.pipelines) > 1:
            several = f"the plan of {self.model} has {len(self.pipelines)} pipelines"
            raise InputError(f"{several}; this takes one: give the folder of a replica, or plan with --replicas 1")
        (pipeline,) = self.pipelines
        return pipeline

    @property
    def replicas(self) -> "tuple[Plan, ...]":
        """A plan of one pipeline for each; that of a single pipeline is itself."""
        return tuple(self if pipeline.replica is None else self._alone(pipeline, pipeline.replica) for pipeline in self.pipelines)

    def _alone(self, pipeline: Pipeline, replica: Replica) -> "Plan":
        return replace(
            self,
            workload=replica.workload,
            pipelines=(replace(pipeline, replica=None),),
            prediction=replica.prediction,
            quality=replica.quality,
            optimality=Optimality(replica.objective, None, False, self.optimality.solver),
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.pipeline.stages

    @property
    def ranks(self) -> int:
        """Devices of each stage: 1, or those of its tensor-parallel group."""
        return self.cluster.device(self.stages[0].device).ranks

    @property
    def idle(self) -> tuple[str, ...]:
        """Devices of the cluster that no stage runs on."""
        used = {name for stage in self.stages for name in self.cluster.device(stage.device).members}
        return tuple(device.name for device in self.cluster.devices if device.name not in used)

    @property
    def options(self) -> tuple[str, ...]:
        """The option of every layer, in layer order."""
        return tuple(option for stage in self.stages for option in stage.options)

    @property
    def load(self) -> Load:
        """The load of a plan for serving."""
        assert self.prediction.load is not None, "the plan is for a batch"
        return self.prediction.load

    @property
    def batch(self) -> Batch:
        """The batch that the plan has memory for: the workload, what of it is in the cache at once, or as many sequences at
        their longest as its blocks hold."""
        if isinstance(self.workload, Batch):
            resident = self.pipelines[0].resident
            return self.workload if resident is None else replace(self.workload, batch_size=resident)
        held = self.load.kv_tokens // self.workload.kv_len
        return Batch(max(1, min(held, self.load.running)), self.workload.prompt_len, self.workload.gen_len)

    @property
    def rounds(self) -> int:
        """How often as many sequences of a batch as are in the cache at once are generated, until all are."""
        return -(-self.workload.batch_size // self.batch.batch_size) if isinstance(self.workload, Batch) else 1

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of the whole batch, or at full load."""
        if isinstance(self.workload, Serving):
            return self.load.tokens_per_s
        return self.workload.batch_size * self.workload.gen_len / self.prediction.latency_s
