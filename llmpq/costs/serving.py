"""Costs of continuous batching: steps that decode some sequences and prefill a part of the prompts that follow."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from math import ceil
from typing import TypeVar

from llmpq.costs.activations import Activations, bounded_activations
from llmpq.costs.latency import embedding_latency_s, head_latency_s, latency_provenance, overhead_s
from llmpq.costs.memory import logits_bytes
from llmpq.costs.op_latency import attention_s, cache_s, collectives_s, products_s, streams_s
from llmpq.costs.part_times import measured_s, with_cache
from llmpq.costs.profile import Profile, profile_of_dtype
from llmpq.costs.shard import ranks_of, shard
from llmpq.costs.step import Step
from llmpq.costs.table import CostTable, PhaseCosts, ServingStep, most_rows_of
from llmpq.costs.table import derive_costs as derive_batch_costs
from llmpq.costs.transfers import sent_bytes
from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.layer_option import LayerOption
from llmpq.op_graph import Size
from llmpq.plan import ComputeDtype
from llmpq.workload import KV_BLOCK, Serving, Workload

T = TypeVar("T")

MOST_SEQUENCES = 1024  # of one step; vLLM's own default is at most this
GROWTH = 1.12  # from one number of sequences to the next: what is lost between two of them is less than the error of the costs
SMALLEST_BUDGET, LARGEST_BUDGET = 64, 16384  # tokens of a step; powers of two between them


def derive_costs(
    graph: LayerGraph,
    cluster: Cluster,
    workload: Workload,
    precisions: tuple[LayerOption, ...],
    compute_dtype: ComputeDtype,
    engine: str,
    *,
    timed: bool = True,
    profile: Profile | None = None,
    queue: bool = False,
) -> CostTable:
    """Every cost that a plan of this graph on this cluster can need, from a profile, tables of measurements or by roofline.

    Not `timed`: what is supported and the bytes alone, every latency 0, at once: enough to ask whether a plan fits.
    queue: sequences of a batch may wait while others are in the cache.
    """
    if isinstance(workload, Serving):
        return _derive_serving(graph, cluster, workload, precisions, compute_dtype, engine, timed, profile)
    asked = (graph, cluster, workload, precisions, compute_dtype, engine)
    return derive_batch_costs(*asked, timed=timed, profile=profile, queue=queue)


def _derive_serving(
    graph: LayerGraph,
    cluster: Cluster,
    workload: Serving,
    precisions: tuple[LayerOption, ...],
    compute_dtype: ComputeDtype,
    engine: str,
    timed: bool,
    profile: Profile | None,
) -> CostTable:
    """`decode`: mean steps, by sequences; `prefill`: activations alone, by token budget; `kv_bytes`: of one block."""
    graph = shard(graph, ranks_of(cluster.devices))
    measured = profile_of_dtype(profile, compute_dtype)
    mixed = _MixedSteps(graph, cluster.devices, workload, precisions, compute_dtype, engine, timed, measured)
    means = {
        sequences: mixed.costs(sequences, workload.prefill_tokens(sequences))
        for sequences in _sequences(workload, cluster.devices)
    }
    steps = tuple(step for sequences, mean in means.items() for step in _steps(workload, mixed, sequences, mean))
    budgets = sorted({step.token_budget for step in steps}, reverse=True)
    return CostTable(
        devices=tuple(device.name for device in cluster.devices),
        options=tuple(precision.name for precision in precisions),
        prefill=tuple(mixed.budget_costs(budget, next(iter(means.values()))) for budget in budgets),
        decode=tuple(means.values()),
        layer_bytes=tuple(tuple(kind.weight_bytes(precision) for precision in precisions) for kind in graph.kinds),
        kv_bytes=tuple(kind.kv_bytes_per_token * KV_BLOCK for kind in graph.kinds),
        first_bytes=graph.first_bytes,
        last_bytes=graph.last_bytes(with_first=False),
        last_bytes_with_first=graph.last_bytes(with_first=True),
        provenance=latency_provenance(cluster.devices, precisions, engine, graph, measured) if timed else "bytes alone",
        steps=steps,
    )


def mean_step_costs(
    graph: LayerGraph,
    devices: tuple[Device, ...],
    workload: Serving,
    precisions: tuple[LayerOption, ...],
    compute_dtype: ComputeDtype,
    engine: str,
    sequences: int,
    profile: Profile | None = None,
) -> PhaseCosts:
    """The mean step in which `sequences` decode."""
    graph = shard(graph, ranks_of(devices))
    measured = profile_of_dtype(profile, compute_dtype)
    mixed = _MixedSteps(graph, devices, workload, precisions, compute_dtype, engine, timed=True, profile=measured)
    return mixed.costs(sequences, workload.prefill_tokens(sequences))


def _sequences(workload: Serving, devices: tuple[Device, ...]) -> list[int]:
    """Numbers of decoding sequences of a step, those whose step fits into the largest token budget; also the most whose step has
    no more rows than some device multiplies at the tile of fewer."""
    most, size = 1 + workload.prefill_tokens(1), 1
    found = {sequences for rows in most_rows_of(devices) if 1 <= (sequences := int(rows / most)) <= MOST_SEQUENCES}
    while size <= MOST_SEQUENCES and size + workload.prefill_tokens(size) <= LARGEST_BUDGET:
        found.add(size)
        size = max(size + 1, int(size * GROWTH))
    return sorted(found)


def _steps(workload: Serving, mixed: "_MixedSteps", sequences: int, mean: PhaseCosts) -> list[ServingStep]:
    """The least token budget that the mean step fits into; larger ones where they bring the first token earlier."""
    needed = sequences + workload.prefill_tokens(sequences)
    budgets = [SMALLEST_BUDGET << power for power in range(9) if needed <= SMALLEST_BUDGET << power <= LARGEST_BUDGET]
    found: list[ServingStep] = []
    for budget in budgets if workload.ttft_s is not None else budgets[:1]:
        chunks = ceil(workload.new_prompt_tokens / (budget - sequences)) if budget > sequences else None
        if chunks is None:
            continue
        stretch = mixed.stretch(mean, mixed.costs(sequences, float(budget - sequences)))
        step = ServingStep(sequences, budget, workload.prefill_tokens(sequences), 0.5 + chunks * stretch)
        if not found or step.trips_to_first_token < found[-1].trips_to_first_token:
            found.append(step)
    return found


@dataclass(frozen=True, slots=True)
class _MixedSteps:
    """What steps of any make-up cost; identical devices are costed once."""

    graph: LayerGraph
    devices: tuple[Device, ...]
    workload: Serving
    precisions: tuple[LayerOption, ...]
    compute_dtype: ComputeDtype
    engine: str
    timed: bool
    profile: Profile | None = None

    def costs(self, sequences: int, prompt_tokens: float) -> PhaseCosts:
        """One step: `sequences` decode, `prompt_tokens` of prompts are computed."""
        step = self._step(sequences, prompt_tokens)
        tokens = ceil(sequences + prompt_tokens)
        rows = sequences + ceil(prompt_tokens / self.workload.new_prompt_tokens)

        def layer(device: Device) -> tuple[tuple[float | None, ...], ...]:
            return tuple(
                tuple(self._layer_s(device, kind, precision, step) for precision in self.precisions) for kind in self.graph.kinds
            )

        layers = self._by_device(layer)
        ends = self._by_device(lambda device: self._ends_s(device, step, tokens, rows))
        return PhaseCosts(
            micro_batch=sequences,
            layer_s=tuple(tuple(found[k] for found in layers) for k in range(len(self.graph.kinds))),
            first_s=tuple(first for first, _ in ends),
            last_s=tuple(last for _, last in ends),
            hidden_bytes=tokens * sent_bytes(self.graph, self.engine),
            activations=self._activations(tokens),
            logits_bytes=logits_bytes(self.graph, rows),
            stage_s=self._beside(lambda profile, device: profile.stage_s(device, self.graph, step)),
            message_s=self._beside(lambda profile, device: profile.message_s(device, self.graph, step)),
        )

    def budget_costs(self, budget: int, like: PhaseCosts) -> PhaseCosts:
        """The activations of a step of that many tokens; its seconds are those of no step, 0."""
        none = tuple(0.0 for _ in self.devices)
        cells = tuple(tuple(tuple(None if cell is None else 0.0 for cell in row) for row in kind) for kind in like.layer_s)
        empty = replace(like, micro_batch=budget, layer_s=cells, first_s=none, last_s=none)
        return replace(empty, hidden_bytes=0, activations=self._activations(budget), logits_bytes=0, stage_s=(), message_s=())

    def _activations(self, tokens: int) -> Activations:
        return bounded_activations(self.graph, len(self.devices), len(self.precisions), (1, tokens, 0))

    def stretch(self, mean: PhaseCosts, full: PhaseCosts) -> float:
        """How much longer than the mean step a full one takes at most, whatever the assignment; at least 1."""
        pairs = [(mean.hidden_bytes, full.hidden_bytes), *zip(mean.first_s, full.first_s), *zip(mean.last_s, full.last_s)]
        for kinds in zip(mean.layer_s, full.layer_s):
            pairs += [(a or 0.0, b or 0.0) for rows in zip(*kinds) for a, b in zip(*rows)]
        return max([1.0, *(float(b) / float(a) for a, b in pairs if a > 0)])

    def _layer_s(self, device: Device, kind: LayerKind, option: LayerOption, step: Step) -> float | None:
        """Linears over all tokens of the step, attention of the decoding sequences and of the prompts apart."""
        if layer_support(self.engine, device.type, option, kind).level == "unsupported":
            return None
        if not self.timed:
            return 0.0
        profile, modelled = self.profile, partial(self._modelled_layer_s, device, kind, step)
        cache = self._cache_s(device, kind, step)
        if profile is None:
            return modelled(option) + cache
        found = measured_s(option, lambda precision: profile.layer_s(device, kind, precision, step), modelled)
        return modelled(option) + cache if found is None else with_cache(found, cache, option, modelled)

    def _cache_s(self, device: Device, kind: LayerKind, step: Step) -> float:
        """What attention takes longer, or less, with the layer's cache than with one of 16 bits."""
        new, rest = ceil(step.new_tokens), (self.compute_dtype,)
        decode = cache_s(device, kind, self.engine, step.sequences, 1, step.context, *rest)
        return decode + step.prompts * cache_s(device, kind, self.engine, 1, new, step.prompt_len, *rest)

    def _modelled_layer_s(self, device: Device, kind: LayerKind, step: Step, option: LayerOption) -> float:
        new = ceil(step.new_tokens)

        def measure(size: Size) -> int:
            return size(1, step.context, step.sequences) + ceil(step.prompts * size(new, step.prompt_len, 1))

        products = products_s(device, kind.ops, kind.linears, option, measure, self.compute_dtype, self.engine)
        window = kind.attention.window
        decode = attention_s(device, kind.ops, window, step.sequences, 1, step.context, self.compute_dtype)
        prefill = step.prompts * attention_s(device, kind.ops, window, 1, new, step.prompt_len, self.compute_dtype)
        beside = streams_s(device, kind.ops, measure, self.compute_dtype) + collectives_s(device, kind.ops, measure)
        return products + decode + prefill + beside + overhead_s(device)

    def _step(self, sequences: int, prompt_tokens: float) -> Step:
        """Prompts count by their tokens, the parts that earlier requests left behind not computed again."""
        workload, new = self.workload, self.workload.new_prompt_tokens
        return Step(sequences, ceil(workload.resident_tokens), prompt_tokens / new, new, workload.prompt_len)

    def _ends_s(self, device: Device, step: Step, tokens: int, rows: int) -> tuple[float, float]:
        """Seconds before the layers and behind them, of all tokens of the step and of those that are sampled."""
        if not self.timed:
            return 0.0, 0.0
        measured = self.profile.ends_s(device, self.graph, step) if self.profile else None
        if measured is not None:
            return measured
        first = embedding_latency_s(device, self.graph, tokens, self.compute_dtype)
        return first, head_latency_s(device, self.graph, rows, self.compute_dtype)

    def _beside(self, cost: Callable[[Profile, Device], float]) -> tuple[float, ...]:
        """[device]; () where nothing is measured."""
        profile = self.profile
        return () if profile is None or not self.timed else tuple(self._by_device(lambda device: cost(profile, device)))

    def _by_device(self, cost: Callable[[Device], T]) -> list[T]:
        @cache
        def known(alike: Device) -> T:
            return cost(alike)

        return [known(replace(device, name="", host="")) for device in self.devices]
