"""Stage bounds: what bounds each stage of a plan in each phase: arithmetic, memory traffic, launches, links."""

from dataclasses import dataclass
from typing import Literal

from llmpq.answers.subject import Subject
from llmpq.costs.linear_latency import DTYPE
from llmpq.costs.op_latency import COLLECTIVES, collectives_s
from llmpq.costs.peaks import row_factor, seconds_at_efficiency
from llmpq.costs.shard import shard
from llmpq.graph import LayerKind
from llmpq.hardware.cluster import Device
from llmpq.hardware.support import support
from llmpq.layer_option import LayerOption
from llmpq.op_graph import Size
from llmpq.plan import SERVED_TOKENS, DeviceMemory
from llmpq.program import Program
from llmpq.solver.problem import Phase, phase_times
from llmpq.workload import Batch, Workload

Bound = Literal["compute", "bandwidth", "overhead", "link"]
Parts = tuple[tuple[float, int, int, int], ...]  # of a step: (how often, new tokens, context, sequences)


@dataclass(frozen=True, slots=True)
class PhaseBound:
    """One micro-batch (when serving: one step) in one stage.

    seconds: predicted, its link apart; compute_s, bandwidth_s, overhead_s: what its arithmetic, its memory traffic and its
    launches would take alone at the rates of the roofline, collective_s: what the ranks of a group send each other; the longest
    bounds it, unless the link is longer still.
    """

    seconds: float
    link_s: float
    compute_s: float
    bandwidth_s: float
    overhead_s: float
    collective_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.seconds + self.link_s

    @property
    def bound(self) -> Bound:
        if self.link_s > self.seconds:
            return "link"
        shares: dict[Bound, float] = {
            "compute": self.compute_s,
            "bandwidth": self.bandwidth_s,
            "overhead": self.overhead_s,
            "link": self.collective_s,
        }
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True, slots=True)
class StageBounds:
    """One stage; `prefill` None when serving, where steps mix both."""

    device: str
    first_layer: int
    last_layer: int
    prefill: PhaseBound | None
    decode: PhaseBound
    memory: DeviceMemory


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The slowest stage of a phase and what bounds it; `by_trip`: decode takes the trip through all stages instead."""

    phase: Phase
    device: str
    bound: Bound
    seconds: float
    by_trip: bool


def stage_bounds(subject: Subject) -> tuple[StageBounds, ...]:
    """Every stage of the plan, in order."""
    plan = subject.plan
    phases: tuple[Phase, ...] = ("decode",) if plan.prediction.load else ("prefill", "decode")
    times = {phase: _phase_bounds(subject, phase) for phase in phases}
    prefill: tuple[PhaseBound | None, ...] = times.get("prefill") or (None,) * len(plan.stages)
    return tuple(
        StageBounds(stage.device, stage.layers[0], stage.layers[-1], before, after, memory)
        for stage, before, after, memory in zip(plan.stages, prefill, times["decode"], plan.prediction.memory, strict=True)
    )


def bottlenecks(subject: Subject, stages: tuple[StageBounds, ...]) -> tuple[Bottleneck, ...]:
    """The slowest stage of prefill (of a batch) and of decode."""
    prefill = [stage.prefill for stage in stages if stage.prefill is not None]
    decode = _bottleneck("decode", stages, [stage.decode for stage in stages], subject.problem.decode_micro_batches)
    if not prefill:
        return (decode,)
    return _bottleneck("prefill", stages, prefill, subject.problem.prefill_micro_batches), decode


def _bottleneck(phase: Phase, stages: tuple[StageBounds, ...], times: list[PhaseBound], batches: int) -> Bottleneck:
    slowest = max(range(len(times)), key=lambda j: times[j].total_s)
    longest = times[slowest].total_s
    trip = phase == "decode" and sum(time.total_s for time in times) > batches * longest * (1 + 1e-9)
    return Bottleneck(phase, stages[slowest].device, times[slowest].bound, longest, trip)


def _phase_bounds(subject: Subject, phase: Phase) -> tuple[PhaseBound, ...]:
    plan, parts = subject.plan, _parts(subject.plan.workload, subject, phase)
    load = plan.prediction.load
    scale = 1.0 if load is None else load.running / SERVED_TOKENS
    found = []
    for stage, seconds, link_s in zip(plan.stages, *phase_times(subject.problem, subject.assignment, phase), strict=True):
        device = plan.cluster.device(stage.device)
        options = [subject.problem.options.index(name) for name in stage.options]
        shares = [roofline_shares(subject.program, device, i, b, parts) for i, b in zip(stage.layers, options)]
        compute, bandwidth = (sum(share[k] for share in shares) for k in (0, 1))
        sent = sum(_collective_s(subject.program, device, i, parts) for i in stage.layers)
        overhead = len(stage.options) * device.type.overhead_s / device.speed
        found.append(PhaseBound(scale * seconds, scale * link_s, compute, bandwidth, overhead, sent))
    return tuple(found)


def _parts(workload: Workload, subject: Subject, phase: str) -> Parts:
    """The step of a phase as costs are derived for it."""
    if isinstance(workload, Batch):
        if phase == "prefill":
            return ((1.0, workload.prompt_len, workload.prompt_len, subject.candidate.prefill_micro_batch),)
        return ((1.0, 1, workload.prompt_len + workload.gen_len // 2, subject.candidate.decode_micro_batch),)
    new, load = round(workload.new_prompt_tokens), subject.plan.load
    decoding = (1.0, 1, round(workload.resident_tokens), subject.candidate.decode_micro_batch)
    return decoding, (load.prefill_tokens / max(new, 1), max(new, 1), workload.prompt_len, 1)


def _collective_s(program: Program, device: Device, layer: int, parts: Parts) -> float:
    """What the ranks of a group send each other for one layer, all tokens of a step at once."""
    ops = shard(program.graph, device.ranks).kind_of(layer).ops

    def of_step(size: Size) -> int:
        return round(sum(often * size(tokens, context, rows) for often, tokens, context, rows in parts))

    return collectives_s(device, ops, of_step)


def roofline_shares(program: Program, device: Device, layer: int, option: int, parts: Parts) -> tuple[float, float]:
    """Seconds of one layer's arithmetic alone and of its memory traffic alone, at the rates of the roofline."""
    kind, precision = shard(program.graph, device.ranks).kind_of(layer), program.request.precisions[option]

    def measured(size: Size) -> float:
        return sum(often * size(tokens, context, rows) for often, tokens, context, rows in parts)

    native = support(program.request.engine, device.type, precision).level == "native"
    lower = native and all(part.is_quantized and part.activation_bits < 16 for part in precision.parts)
    dtype = {"int": "int8", "fp8": "fp8"}[precision.parts[-1].kind] if lower else DTYPE[program.require("compute_dtype")]
    tokens = round(sum(often * new * rows for often, new, _, rows in parts))
    again = row_factor(device.type, tokens) - 1
    moved = measured(kind.ops.traffic(lambda op: op.kind not in ("view", *COLLECTIVES)))
    moved += _weights_moved(kind, precision, native, tokens, again)
    compute = seconds_at_efficiency(device.type, dtype, measured(kind.ops.flops), 0.0)
    return compute / device.speed, seconds_at_efficiency(device.type, dtype, 0.0, moved) / device.speed


def _weights_moved(kind: LayerKind, precision: LayerOption, native: bool, tokens: int, again: float) -> float:
    """Bytes of weights that are read, of experts those that are reached; written and read again where they are unpacked.

    again: times more that products of 16 bits read theirs, as a step of their rows is worth.
    """
    held = sum(op.weight_bytes for op in kind.ops.ops)
    reached = sum(op.weight_reads(1, 1, tokens) for op in kind.ops.ops) / held if held else 1.0
    times = 2 + again if precision.is_quantized else again
    at_16_bits = 0.0 if native and precision.is_quantized else times * sum(w.nbytes for w in kind.ops.weights)
    return reached * (kind.weight_bytes(precision) + at_16_bits)
