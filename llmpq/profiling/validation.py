"""Validation: a compiled model run on its own workload in this process, beside what was predicted of it."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from llmpq.costs.latency import latency_provenance
from llmpq.costs.profile import Profile, profile_of_dtype
from llmpq.errors import InputError
from llmpq.generation import SamplingParams
from llmpq.graph import LayerGraph
from llmpq.layer_option import parse_options
from llmpq.plan import ComputeDtype, Plan
from llmpq.planning.stage_seconds import StageSeconds, stage_seconds
from llmpq.profiling.metered_stage import MeteredStage
from llmpq.profiling.probe import Clock
from llmpq.quantization.dense_linear import DenseLinear
from llmpq.quantization.quantized_linear import QuantizedLinear
from llmpq.runtime.engine import Engine
from llmpq.runtime.job import Job, generate_job
from llmpq.runtime.progress import Progress
from llmpq.runtime.schedule import plan_schedule
from llmpq.runtime.simulate import Times, simulate
from llmpq.runtime.spec import PipelineSpec, pipeline_spec
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import in_process_ring
from llmpq.workload import Batch

if TYPE_CHECKING:
    from llmpq.compiled import CompiledModel

QUICK_TOKENS = 8
LIVE_SHARE, LIVE_BYTES = 0.02, 2**20  # by which all that lives at once may stay below what was planned
UNMEASURED_BAND = (0.5, 3.0)  # of predictions by tables and roofline (llmpq.costs.band)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure, predicted and measured, in seconds or bytes; `low`, `high`: factors between which the ratio was expected."""

    what: str
    device: str
    unit: str
    predicted: float
    measured: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """Measured over predicted; 1 where both are nothing."""
        if self.predicted:
            return self.measured / self.predicted
        return 1.0 if not self.measured else float("inf")

    @property
    def is_within(self) -> bool:
        return self.low <= self.ratio <= self.high


@dataclass(frozen=True, slots=True)
class Validation:
    """rows: of every stage and end to end; provenance: what the predicted times rest on; workload: as it was run.

    speeds: (device, its speed in the cluster, the speed at which the predicted time of its stage would be the measured one)
    """

    model: str
    workload: Batch
    provenance: str
    rows: tuple[Comparison, ...]
    speeds: tuple[tuple[str, float, float], ...]

    @property
    def outside(self) -> tuple[Comparison, ...]:
        return tuple(row for row in self.rows if not row.is_within)

    def factor(self, what: str) -> float:
        """How much longer than predicted a phase took over all stages."""
        rows = [row for row in self.rows if row.what == what]
        return sum(row.measured for row in rows) / sum(row.predicted for row in rows)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took: seconds of every action by (stage, phase), of the whole; weights and cache of every stage, bytes.

    live_bytes: of what else lived at once in every stage, where that was counted
    """

    actions: dict[tuple[int, str], list[float]]
    total_s: float
    weight_bytes: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    live_bytes: tuple[int, ...] = ()


def validate(
    compiled: "CompiledModel", profile: Profile | None = None, quick: bool = False, clock: Clock = time.perf_counter
) -> Validation:
    """Run the batch of the plan (of one that queues, a round) and compare; `quick`: at most QUICK_TOKENS generated tokens.

    Every stage runs in this process, on the device that this machine has for it. Raises InputError for a plan for serving.
    """
    plan, graph = compiled.plan, compiled.graph
    if not isinstance(plan.workload, Batch):
        raise InputError(f"{compiled.directory}: was planned for serving; validate runs plans for a batch (--batch-size)")
    if plan.ranks > 1:
        has = f"{compiled.directory}: its stages are tensor-parallel groups, as {plan.stages[0].device}"
        raise InputError(f"{has}; validate runs stages on single devices: plan with --tensor-parallel 1")
    return compare(plan, graph, zip(compiled.stages, compiled.torch_devices), compiled.compute_dtype, profile, quick, clock)


def compare(
    plan: Plan,
    graph: LayerGraph,
    modules: Iterable[tuple[nn.Module, torch.device]],
    dtype: ComputeDtype | None = None,
    profile: Profile | None = None,
    quick: bool = False,
    clock: Clock = time.perf_counter,
) -> Validation:
    """The plan of a batch run by these stages, each on its device. dtype: of the weights, by default that of the plan."""
    workload = replace(plan.batch, gen_len=min(plan.batch.gen_len, QUICK_TOKENS)) if quick else plan.batch
    ran = replace(plan, workload=workload, engine="local")
    spec = pipeline_spec(plan, graph, dtype)
    stages = {j: MeteredStage(module, spec.layers[j], spec.torch_dtype, device) for j, (module, device) in enumerate(modules)}
    job = _job(graph, workload)
    run_job(generate_job(job.sequences, SamplingParams(min(2, workload.gen_len))), spec, stages, clock)  # warms up
    live_bytes = tuple(stage.live_bytes for stage in stages.values())
    for stage in stages.values():
        stage.counts = False
    run = replace(run_job(job, spec, stages, clock), live_bytes=live_bytes)
    profile = profile_of_dtype(profile.alone if profile else None, plan.compute_dtype)  # stages take turns here
    precisions = parse_options(tuple(dict.fromkeys(plan.options)))
    provenance = latency_provenance(plan.cluster.devices, precisions, "local", graph, profile)
    band = profile.band if profile is not None and provenance.startswith("measured") else UNMEASURED_BAND
    rows = (*_memory_rows(plan, workload, run), *_time_rows(ran, stage_seconds(ran, graph, profile), run, band))
    return Validation(graph.model, workload, provenance, rows, _speeds(plan, workload, rows))


def run_job(job: Job, spec: PipelineSpec, stages: Mapping[int, Stage], clock: Clock) -> Run:
    """The job through all stages in this process, every action timed, sampling with that of the last stage."""
    actions: dict[tuple[int, str], list[float]] = {}

    def note(stage: int, action: Action, begin: float, end: float) -> None:
        actions.setdefault((stage, action.phase), []).append(end - begin)

    start = clock()
    engine = Engine(spec, stages, in_process_ring(len(stages)), on_action=note, clock=clock)
    for _ in engine.run(Progress(job)):
        pass
    total_s = clock() - start
    weights = tuple(weight_bytes(stage.module) for stage in stages.values())
    return Run(actions, total_s, weights, tuple(stage.cache_bytes for stage in stages.values()))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the weights that a stage holds, tied ones once, codes in a kernel's own layout included."""
    state = module.state_dict(keep_vars=True)
    held: dict[int, int] = {
        tensor.data_ptr(): tensor.nbytes for name, tensor in state.items() if not name.endswith("weight_shape")
    }
    return sum(held.values()) + sum(linear.prepacked_bytes for linear in _linears(module))


def _linears(module: nn.Module) -> Iterator[QuantizedLinear | DenseLinear]:
    return (found for found in module.modules() if isinstance(found, (QuantizedLinear, DenseLinear)))


def _job(graph: LayerGraph, workload: Batch) -> Job:
    """Prompts of the workload's length, all different, none of which ends early."""
    prompts = [
        [(row * 7919 + position * 104729 + 1) % graph.vocab_size for position in range(workload.prompt_len)]
        for row in range(workload.batch_size)
    ]
    return generate_job(prompts, SamplingParams(workload.gen_len))


def _memory_rows(plan: Plan, workload: Batch, run: Run) -> Iterator[Comparison]:
    """Weights and cache are exact or wrong; all that lives at once is never more than planned, and hardly less."""
    for memory, weights, cache, live in zip(plan.prediction.memory, run.weight_bytes, run.cache_bytes, run.live_bytes):
        planned = memory.weights + memory.embedding + memory.head
        yield Comparison("weights", memory.device, "bytes", planned, weights, 1.0, 1.0)
        kept = memory.kv_cache * workload.kv_len / plan.batch.kv_len
        yield Comparison("kv cache", memory.device, "bytes", kept, cache, 1.0, 1.0)
        total = planned + kept + memory.activations
        yield Comparison("live at once", memory.device, "bytes", total, weights + cache + live, _least_share(total), 1.0)


def _least_share(total: float) -> float:
    """Of a stage's predicted bytes that are expected to live at once."""
    return min(1.0 - LIVE_SHARE, 1.0 - LIVE_BYTES / total)


def _time_rows(plan: Plan, seconds: StageSeconds, run: Run, band: tuple[float, float]) -> Iterator[Comparison]:
    """Stages, then the whole: one after the other as it ran here, and as it would be with every stage on a device of its own."""
    pipeline, batch = plan.pipeline, plan.batch
    predicted, total = Times(seconds.prefill, seconds.decode), 0.0
    measured = Times(_medians(run, plan, "P"), _medians(run, plan, "D"))
    phases = (
        ("prefill", 1, pipeline.prefill_micro_batch, predicted.prefill, measured.prefill),
        ("decode", batch.gen_len - 1, pipeline.decode_micro_batch, predicted.decode, measured.decode),
    )
    for phase, passes, micro_batch, modelled, taken in phases:
        total += sum(modelled) * -(-batch.batch_size // micro_batch) * passes
        if passes:
            for stage, expected, found in zip(plan.stages, modelled, taken):
                yield Comparison(phase, stage.device, "s", expected, found, *band)
    yield Comparison("end to end", "one after the other", "s", total, run.total_s, *band)
    if len(plan.stages) > 1:
        links = Times(seconds.prefill_link, seconds.decode_link)
        expected, found = (simulate(plan_schedule(plan), times, links, overlap=False) for times in (predicted, measured))
        yield Comparison("end to end", "at once", "s", expected, found, *band)


def _medians(run: Run, plan: Plan, phase: str) -> tuple[float, ...]:
    """Seconds of an action of that phase on each stage."""
    return tuple(median(run.actions.get((j, phase), [0.0])) for j in range(len(plan.stages)))


def _speeds(plan: Plan, workload: Batch, rows: Sequence[Comparison]) -> tuple[tuple[str, float, float], ...]:
    """By what prefill and decode together took on each stage."""
    weight = {"prefill": 1.0, "decode": float(workload.gen_len - 1)}
    found = []
    for stage in plan.stages:
        own = [row for row in rows if row.device == stage.device and row.what in weight]
        predicted, measured = (sum(weight[r.what] * s for r, s in zip(own, side)) for side in _sides(own))
        speed = plan.cluster.device(stage.device).speed
        found.append((stage.device, speed, speed * predicted / measured))
    return tuple(found)


def _sides(rows: Sequence[Comparison]) -> tuple[list[float], list[float]]:
    return [row.predicted for row in rows], [row.measured for row in rows]
