"""Costs of continuous batching: steps that decode some sequences and prefill a part of the prompts that follow."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import TypeVar

from llmpq.costs.latency import embedding_latency_s, head_latency_s, latency_provenance, overhead_s
from llmpq.costs.memory import activation_bytes, logits_bytes
from llmpq.costs.op_latency import attention_s, products_s, streams_s
from llmpq.costs.profile import Profile
from llmpq.costs.table import CostTable, PhaseCosts, ServingStep
from llmpq.costs.table import derive_costs as derive_batch_costs
from llmpq.graph import FLOAT_BYTES, LayerGraph, LayerKind
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
) -> CostTable:
    """Every cost that a plan of this graph on this cluster can need, from tables of measurements or by roofline; those of a
    batch from a profile where it has them.

    Not `timed`: what is supported and the bytes alone, every latency 0, at once: enough to ask whether a plan fits.
    """
    if isinstance(workload, Serving):
        return _derive_serving(graph, cluster, workload, precisions, compute_dtype, engine, timed)
    return derive_batch_costs(graph, cluster, workload, precisions, compute_dtype, engine, timed=timed, profile=profile)


def _derive_serving(
    graph: LayerGraph,
    cluster: Cluster,
    workload: Serving,
    precisions: tuple[LayerOption, ...],
    compute_dtype: ComputeDtype,
    engine: str,
    timed: bool,
) -> CostTable:
    """`decode`: mean steps, by sequences; `prefill`: activations alone, by token budget; `kv_bytes`: of one block."""
    mixed = _MixedSteps(graph, cluster.devices, workload, precisions, compute_dtype, engine, timed)
    means = {sequences: mixed.costs(sequences, workload.prefill_tokens(sequences)) for sequences in _sequences(workload)}
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
        provenance=latency_provenance(cluster.devices, precisions, engine) if timed else "bytes alone",
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
) -> PhaseCosts:
    """The mean step in which `sequences` decode."""
    mixed = _MixedSteps(graph, devices, workload, precisions, compute_dtype, engine, timed=True)
    return mixed.costs(sequences, workload.prefill_tokens(sequences))


def _sequences(workload: Serving) -> list[int]:
    """Numbers of decoding sequences of a step, those whose step fits into the largest token budget."""
    found, size = [], 1
    while size <= MOST_SEQUENCES and size + workload.prefill_tokens(size) <= LARGEST_BUDGET:
        found.append(size)
        size = max(size + 1, int(size * GROWTH))
    return found


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

    def costs(self, sequences: int, prompt_tokens: float) -> PhaseCosts:
        """One step: `sequences` decode, `prompt_tokens` of prompts are computed."""
        tokens = ceil(sequences + prompt_tokens)
        rows = sequences + ceil(prompt_tokens / self.workload.new_prompt_tokens)

        def layer(device: Device) -> tuple[tuple[float | None, ...], ...]:
            return tuple(
                tuple(self._layer_s(device, kind, precision, sequences, prompt_tokens) for precision in self.precisions)
                for kind in self.graph.kinds
            )

        layers = self._by_device(layer)
        return PhaseCosts(
            micro_batch=sequences,
            layer_s=tuple(tuple(found[k] for found in layers) for k in range(len(self.graph.kinds))),
            first_s=self._ends(lambda device: embedding_latency_s(device, self.graph, tokens, self.compute_dtype)),
            last_s=self._ends(lambda device: head_latency_s(device, self.graph, rows, self.compute_dtype)),
            hidden_bytes=tokens * self.graph.hidden_size * FLOAT_BYTES,
            activation_bytes=max(activation_bytes(self.graph, kind, 1, tokens, 0) for kind in self.graph.kinds),
            logits_bytes=logits_bytes(self.graph, rows),
        )

    def budget_costs(self, budget: int, like: PhaseCosts) -> PhaseCosts:
        """The activations of a step of that many tokens; its seconds are those of no step, 0."""
        none = tuple(0.0 for _ in self.devices)
        cells = tuple(tuple(tuple(None if cell is None else 0.0 for cell in row) for row in kind) for kind in like.layer_s)
        activations = max(activation_bytes(self.graph, kind, 1, budget, 0) for kind in self.graph.kinds)
        empty = replace(like, micro_batch=budget, layer_s=cells, first_s=none, last_s=none)
        return replace(empty, hidden_bytes=0, activation_bytes=activations, logits_bytes=0)

    def stretch(self, mean: PhaseCosts, full: PhaseCosts) -> float:
        """How much longer than the mean step a full one takes at most, whatever the assignment; at least 1."""
        pairs = [(mean.hidden_bytes, full.hidden_bytes), *zip(mean.first_s, full.first_s), *zip(mean.last_s, full.last_s)]
        for kinds in zip(mean.layer_s, full.layer_s):
            pairs += [(a or 0.0, b or 0.0) for rows in zip(*kinds) for a, b in zip(*rows)]
        return max([1.0, *(float(b) / float(a) for a, b in pairs if a > 0)])

    def _layer_s(
        self, device: Device, kind: LayerKind, precision: LayerOption, sequences: int, prompt_tokens: float
    ) -> float | None:
        """Linears over all tokens of the step, attention of the decoding sequences and of the prompts apart."""
        if layer_support(self.engine, device.type, precision, kind).level == "unsupported":
            return None
        if not self.timed:
            return 0.0
        workload = self.workload
        context, new, prompts = ceil(workload.resident_tokens), ceil(workload.new_prompt_tokens), self._prompts(prompt_tokens)

        def measure(size: Size) -> int:
            return size(1, context, sequences) + ceil(prompts * size(new, workload.prompt_len, 1))

        products = products_s(device, kind.ops, kind.linears, precision, measure, self.compute_dtype, self.engine)
        window = kind.attention.window
        decode = attention_s(device, kind.ops, window, sequences, 1, context, self.compute_dtype)
        prefill = prompts * attention_s(device, kind.ops, window, 1, new, workload.prompt_len, self.compute_dtype)
        return products + decode + prefill + streams_s(device, kind.ops, measure, self.compute_dtype) + overhead_s(device)

    def _prompts(self, prompt_tokens: float) -> float:
        """How many prompts those tokens are, the parts that earlier requests left behind not computed again."""
        return prompt_tokens / self.workload.new_prompt_tokens

    def _ends(self, seconds: Callable[[Device], float]) -> tuple[float, ...]:
        return tuple(self._by_device(seconds)) if self.timed else tuple(0.0 for _ in self.devices)

    def _by_device(self, cost: Callable[[Device], T]) -> list[T]:
        @cache
        def known(alike: Device) -> T:
            return cost(alike)

        return [known(replace(device, name="", host="")) for device in self.devices]
