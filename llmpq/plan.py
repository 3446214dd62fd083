"""Plan: what runs where, at which precision, and what is predicted of it."""

from dataclasses import dataclass
from typing import Literal

from llmpq.hardware.cluster import Cluster
from llmpq.workload import Batch

ComputeDtype = Literal["bfloat16", "float16", "float32"]
PLAN_FORMAT = "llmpq-plan-1"


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers [first_layer, first_layer + len(options)) on one device, an option per layer."""

    device: str
    first_layer: int
    options: tuple[str, ...]

    @property
    def layers(self) -> range:
        return range(self.first_layer, self.first_layer + len(self.options))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages in order, and the number of sequences of a prefill and of a decode micro-batch."""

    stages: tuple[Stage, ...]
    prefill_micro_batch: int
    decode_micro_batch: int


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on one device, term by term; `capacity` is what the model may use."""

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
class Prediction:
    """Modelled seconds of the whole batch, and bytes per device. `provenance` says what the times rest on."""

    prefill_s: float
    decode_s: float
    memory: tuple[DeviceMemory, ...]
    provenance: str

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
    model: str
    compute_dtype: ComputeDtype
    workload: Batch
    cluster: Cluster
    pipelines: tuple[Pipeline, ...]
    prediction: Prediction
    quality: Quality
    optimality: Optimality
    format: str = PLAN_FORMAT

    @property
    def pipeline(self) -> Pipeline:
        """The only pipeline (replicas are not planned yet)."""
        (pipeline,) = self.pipelines
        return pipeline

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.pipeline.stages

    @property
    def options(self) -> tuple[str, ...]:
        """The option of every layer, in layer order."""
        return tuple(option for stage in self.stages for option in stage.options)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of the whole batch."""
        return self.workload.batch_size * self.workload.gen_len / self.prediction.latency_s
