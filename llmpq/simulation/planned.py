"""A plan for serving, simulated: what its stages and links take for any step, and requests served by it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from math import ceil

from llmpq.costs.latency import embedding_latency_s, head_latency_s, overhead_s
from llmpq.costs.op_latency import attention_s, cache_s, collectives_s, products_s, streams_s
from llmpq.costs.part_times import measured_s, with_cache
from llmpq.costs.profile import Profile, profile_of_dtype
from llmpq.costs.shard import shard
from llmpq.costs.step import Step
from llmpq.costs.transfers import TOKEN_BYTES, sent_bytes
from llmpq.errors import InputError
from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.cluster import Device
from llmpq.hardware.link import Link
from llmpq.layer_option import LayerOption, parse_option
from llmpq.op_graph import Size
from llmpq.plan import Load, Plan, Stage
from llmpq.simulation.pipeline import Seconds
from llmpq.simulation.requests import Request
from llmpq.simulation.scheduler import Policy, StepShape
from llmpq.simulation.simulator import Run, simulate

FINE = 1.02  # steps whose sizes differ by less are taken to be equal: less than the error of the costs


def simulate_plan(
    plan: Plan,
    graph: LayerGraph,
    engine: str,
    requests: Sequence[Request],
    keep_spans: int = 0,
    profile: Profile | None = None,
) -> Run:
    """Serve the requests by the plan, with its own sequences, token budget and cache blocks; profile: what the plan rests on.

    Raises InputError for a plan of a batch, and for a request that is longer than its cache.
    """
    load = load_of(plan)
    policy = Policy(load.running, load.token_budget, load.kv_blocks, load.block_size)
    times = StageTimes(plan, shard(graph, plan.ranks), engine, profile)
    return simulate(requests, policy, len(plan.stages), times.stage_s(), times.link_s, overlap=False, keep_spans=keep_spans)


def load_of(plan: Plan) -> Load:
    if plan.prediction.load is None:
        raise InputError("the plan is for one batch; give --rate or --trace to plan for serving")
    return plan.prediction.load


@dataclass(frozen=True)
class StageTimes:
    """Seconds of the plan's stages and links for a step, by the costs that the plan was made with.

    graph: what each device has of the model, a part of it where stages are groups
    """

    plan: Plan
    graph: LayerGraph
    engine: str
    profile: Profile | None = None

    def stage_s(self) -> Seconds:
        """A function of (stage, step), which remembers: sizes are rounded up to a grid of 2 %."""

        @cache
        def known(stage: int, prefill_tokens: int, prefill_context: int, sequences: int, context: int, sampled: int) -> float:
            return self._stage_s(stage, _Step(prefill_tokens, prefill_context, sequences, context, sampled))

        def seconds(stage: int, step: StepShape) -> float:
            prompts, context = step.prefill_tokens, 0
            if prompts:
                context = ceil(step.prefill_pairs / prompts + (prompts - 1) / 2)
            seen = ceil(step.decode_context / step.decode_sequences) if step.decode_sequences else 0
            return known(stage, *map(_grid, (prompts, max(context, prompts), step.decode_sequences, seen, step.sampled)))

        return seconds

    def link_s(self, stage: int, step: StepShape) -> float:
        """The hidden states on the way to the next stage, from the last one the tokens back to the first."""
        if not self._links:
            return 0.0
        last = stage == len(self._links) - 1
        nbytes = step.sampled * TOKEN_BYTES if last else step.tokens * sent_bytes(self.graph, self.engine)
        return self._links[stage].transfer_s(nbytes) + self._message_s(stage, step.sampled)

    def _message_s(self, stage: int, sampled: int) -> float:
        found = self._measured
        return 0.0 if found is None else found.message_s(self._device(self.plan.stages[stage]), self.graph, Step(sampled, 0))

    @cached_property
    def _links(self) -> tuple[Link, ...]:
        """From each stage to the next, from the last to the first; none where there is one stage."""
        names = [stage.device for stage in self.plan.stages]
        following = [*names[1:], names[0]]
        return tuple(self.plan.cluster.link(*ends) for ends in zip(names, following)) if len(names) > 1 else ()

    def _device(self, stage: Stage) -> Device:
        return self.plan.cluster.device(stage.device)

    def _stage_s(self, index: int, step: "_Step") -> float:
        stage = self.plan.stages[index]
        device = self._device(stage)
        alike = Counter((self.graph.layer_kind[layer], option) for layer, option in zip(stage.layers, stage.options))
        seconds = sum(
            count * self._layer_s(device, self.graph.kinds[kind], parse_option(option), step)
            for (kind, option), count in alike.items()
        )
        first, last = self._ends_s(device, step)
        if index == 0:
            seconds += first
        if index == len(self.plan.stages) - 1:
            return seconds + last
        return seconds + (self._measured.stage_s(device, self.graph, step.measured) if self._measured else 0.0)

    @property
    def _measured(self) -> Profile | None:
        return profile_of_dtype(self.profile, self.plan.compute_dtype)

    def _ends_s(self, device: Device, step: "_Step") -> tuple[float, float]:
        """Seconds before the layers of the first stage and behind those of the last."""
        found = self._measured.ends_s(device, self.graph, step.measured) if self._measured else None
        if found is not None:
            return found
        dtype = self.plan.compute_dtype
        first = embedding_latency_s(device, self.graph, step.tokens, dtype)
        return first, head_latency_s(device, self.graph, max(step.sampled, 1), dtype)

    def _layer_s(self, device: Device, kind: LayerKind, option: LayerOption, step: "_Step") -> float:
        profile, modelled = self._measured, partial(self._modelled_layer_s, device, kind, step)
        cache = self._cache_s(device, kind, step)
        if profile is None:
            return modelled(option) + cache
        found = measured_s(option, lambda precision: profile.layer_s(device, kind, precision, step.measured), modelled)
        return modelled(option) + cache if found is None else with_cache(found, cache, option, modelled)

    def _cache_s(self, device: Device, kind: LayerKind, step: "_Step") -> float:
        """What attention takes longer, or less, with the layer's cache than with one of 16 bits."""
        dtype, seconds = self.plan.compute_dtype, 0.0
        if step.sequences:
            seconds += cache_s(device, kind, self.engine, step.sequences, 1, step.context, dtype)
        if step.prefill_tokens:
            seconds += cache_s(device, kind, self.engine, 1, step.prefill_tokens, step.prefill_context, dtype)
        return seconds

    def _modelled_layer_s(self, device: Device, kind: LayerKind, step: "_Step", option: LayerOption) -> float:
        dtype, window = self.plan.compute_dtype, kind.attention.window
        products = products_s(device, kind.ops, kind.linears, option, step.measure, dtype, self.engine)
        beside = streams_s(device, kind.ops, step.measure, dtype) + collectives_s(device, kind.ops, step.measure)
        seconds = products + beside + overhead_s(device)
        if step.sequences:
            seconds += attention_s(device, kind.ops, window, step.sequences, 1, step.context, dtype)
        if step.prefill_tokens:
            seconds += attention_s(device, kind.ops, window, 1, step.prefill_tokens, step.prefill_context, dtype)
        return seconds


@dataclass(frozen=True, slots=True)
class _Step:
    """A step on the grid; `prefill_context`: positions that the last of one prompt of so many tokens would see."""

    prefill_tokens: int
    prefill_context: int
    sequences: int
    context: int
    sampled: int

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.sequences

    @property
    def measured(self) -> Step:
        """As profiles know it: the prompts of a step as one."""
        return Step(self.sequences, self.context, 1.0 if self.prefill_tokens else 0.0, self.prefill_tokens, self.prefill_context)

    def measure(self, size: Size) -> int:
        decode = size(1, self.context, self.sequences) if self.sequences else 0
        return decode + (size(self.prefill_tokens, self.prefill_context, 1) if self.prefill_tokens else 0)


@cache
def _grid(size: int) -> int:
    """The least of 0, 1, 2, ... and then of steps of 2 % that is not below."""
    at = 1
    while at < size:
        at = max(at + 1, int(at * FINE))
    return at if size else 0
