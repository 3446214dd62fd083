"""CostTable: what the planner is given, by (kind, device, option, phase, micro-batch)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmpq.costs.activations import Activations, bounded_activations, own_activations
from llmpq.costs.kv_blocks import page_size
from llmpq.costs.latency import embedding_latency_s, head_latency_s, latency_provenance, layer_latency_s
from llmpq.costs.memory import kv_cache_bytes, logits_bytes
from llmpq.costs.op_latency import cache_s
from llmpq.costs.part_times import measured_s, with_cache
from llmpq.costs.profile import Profile, by_device, profile_of_dtype
from llmpq.costs.shard import ranks_of, shard
from llmpq.costs.step import step_of
from llmpq.costs.transfers import sent_bytes
from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.layer_option import LayerOption
from llmpq.plan import ComputeDtype
from llmpq.workload import Batch, resident_sizes

MicroBatchCells = tuple[tuple[tuple[float | None, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class PhaseCosts:
    """One phase at one micro-batch size (sequences).

    layer_s:  [kind][device][option] seconds; None where the device cannot run the option
    first_s, last_s: [device] seconds of embedding and of head with sampling
    stage_s: [device] seconds that each stage but the last takes beside, which `last_s` has; () where that is not known
    message_s: [device] seconds that each of several stages spends on messages, charged with the link that leaves it; () likewise
    hidden_bytes: what crosses a link; activations: live at once in a stage, `logits_bytes` more where the head is
    """

    micro_batch: int
    layer_s: MicroBatchCells
    first_s: tuple[float, ...]
    last_s: tuple[float, ...]
    hidden_bytes: int
    activations: Activations
    logits_bytes: int
    stage_s: tuple[float, ...] = ()
    message_s: tuple[float, ...] = ()

    def beside_s(self, device: int) -> float:
        """Seconds of a stage, not the last, beside its layers and ends."""
        return self.stage_s[device] if self.stage_s else 0.0

    def messages_s(self, device: int) -> float:
        """Seconds of one of several stages on messages."""
        return self.message_s[device] if self.message_s else 0.0

    @property
    def activation_bytes(self) -> int:
        """Bytes of any stage on any device, at most."""
        return max(map(self.most_activations, range(len(self.first_s))))

    def most_activations(self, device: int, options: Iterable[int] | None = None, is_first: bool = False) -> int:
        """Bytes of any stage on the device whose layers take any of the options that it supports, by default of all."""
        return self.activations.of_stage(device, self._cells(device, options), is_first)

    def least_activations(self, device: int) -> int:
        """Bytes of any stage on the device, at least."""
        return min((self.activations.of_stage(device, (cell,), True) for cell in self._cells(device, None)), default=0)

    def _cells(self, device: int, options: Iterable[int] | None) -> tuple[tuple[int, int], ...]:
        rows = tuple(devices[device] for devices in self.layer_s)
        chosen = range(len(rows[0])) if options is None else tuple(options)
        return tuple((kind, option) for kind, row in enumerate(rows) for option in chosen if row[option] is not None)


@dataclass(frozen=True, slots=True)
class ServingStep:
    """A step of continuous batching: decoding `sequences`, `prefill_tokens` of prompts on average, at most `token_budget`.

    trips_to_first_token: mean trips of the pipeline from a request's arrival to its first token, at most.
    """

    sequences: int
    token_budget: int
    prefill_tokens: float
    trips_to_first_token: float


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of a graph on the devices of a cluster, devices in the order of the cluster, kinds in that of the graph.

    layer_bytes: [kind][option] weights with scales; kv_bytes: [kind] cache of all sequences, of one block when serving
    steps: of a serving workload; `decode` is then by sequences of a step, `prefill` by its token budget
    """

    devices: tuple[str, ...]
    options: tuple[str, ...]
    prefill: tuple[PhaseCosts, ...]
    decode: tuple[PhaseCosts, ...]
    layer_bytes: tuple[tuple[int, ...], ...]
    kv_bytes: tuple[int, ...]
    first_bytes: int
    last_bytes: int
    last_bytes_with_first: int
    provenance: str
    steps: tuple[ServingStep, ...] = ()

    def phase(self, phase: str, micro_batch: int) -> PhaseCosts:
        """The costs of "prefill" or "decode" at that micro-batch size, one of the derived ones."""
        entries = self.prefill if phase == "prefill" else self.decode
        return next(entry for entry in entries if entry.micro_batch == micro_batch)


def micro_batch_sizes(workload: Batch, num_devices: int, most_rows: Iterable[int] = ()) -> tuple[tuple[int, int], ...]:
    """Candidate (prefill, decode) micro-batch sizes: decode splits the batch into 1 .. N, and 2 N, prefill divides decode.

    Between N and 2 N also the fewest parts of at most so many of `most_rows`, beyond which products take longer (`most_rows_of`).
    Prefill in single sequences is always among them: a smaller batch then never needs more memory.
    """
    below = {-(-workload.batch_size // rows) for rows in most_rows}
    splits = {*range(1, num_devices + 1), *(below & set(range(num_devices, 2 * num_devices))), 2 * num_devices}
    decode = sorted({-(-workload.batch_size // k) for k in splits if k <= workload.batch_size}, reverse=True)
    return tuple((size // part, size) for size in decode for part in sorted({1, 2, 4, 8, 16, 32, size}) if size % part == 0)


def most_rows_of(devices: Iterable[Device]) -> tuple[int, ...]:
    """Rows of a product beyond which some device takes another, slower tile, ascending."""
    return tuple(sorted({least - 1 for device in devices for least, _ in device.type.row_steps}))


def derive_costs(
    graph: LayerGraph,
    cluster: Cluster,
    workload: Batch,
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
    queue: also of micro-batches of fewer sequences, for a batch of which only some are in the cache at once.
    """
    profile = profile_of_dtype(profile, compute_dtype)
    graph = shard(graph, ranks_of(cluster.devices))
    together = resident_sizes(workload.batch_size) if queue else (workload.batch_size,)
    most_rows = most_rows_of(cluster.devices)
    pairs = {
        pair
        for size in together
        for pair in micro_batch_sizes(replace(workload, batch_size=size), len(cluster.devices), most_rows)
    }
    middle = workload.prompt_len + workload.gen_len // 2  # decode is costed half way through the generation

    def phase(sizes: Iterable[int], tokens: int, context: int, longest: int) -> tuple[PhaseCosts, ...]:
        return tuple(
            phase_costs(
                graph,
                cluster.devices,
                precisions,
                (rows, tokens, context, longest),
                compute_dtype,
                engine,
                timed,
                by_device(profile, cluster.devices, cluster.devices, at_once=rows < workload.batch_size),
            )
            for rows in sorted(set(sizes), reverse=True)
        )

    return CostTable(
        devices=tuple(device.name for device in cluster.devices),
        options=tuple(precision.name for precision in precisions),
        prefill=phase((p for p, _ in pairs), workload.prompt_len, workload.prompt_len, workload.prompt_len),
        decode=phase((d for _, d in pairs), 1, middle, workload.kv_len),
        layer_bytes=tuple(tuple(kind.weight_bytes(precision) for precision in precisions) for kind in graph.kinds),
        kv_bytes=tuple(kv_cache_bytes(kind, workload, page_size(engine, cluster.devices)) for kind in graph.kinds),
        first_bytes=graph.first_bytes,
        last_bytes=graph.last_bytes(with_first=False),
        last_bytes_with_first=graph.last_bytes(with_first=True),
        provenance=latency_provenance(cluster.devices, precisions, engine, graph, profile) if timed else "bytes alone",
    )


def phase_costs(
    graph: LayerGraph,
    devices: tuple[Device, ...],
    precisions: tuple[LayerOption, ...],
    shape: tuple[int, int, int, int],
    compute_dtype: ComputeDtype,
    engine: str,
    timed: bool,
    profiles: tuple[Profile | None, ...],
) -> PhaseCosts:
    """One phase at one size.

    shape: sequences, new tokens of each, context that time is charged for, longest context that memory must hold.
    profiles: of each device, see `by_device`
    """
    rows, tokens, context, longest = shape
    step = step_of(rows, tokens, context)
    known = dict(zip((device.name for device in devices), profiles, strict=True))

    def cell(kind: LayerKind, device: Device, option: LayerOption) -> float | None:
        if layer_support(engine, device.type, option, kind).level == "unsupported":
            return None
        if not timed:
            return 0.0

        def modelled(option: LayerOption) -> float:
            return layer_latency_s(device, kind, option, rows, tokens, context, compute_dtype, engine)

        cache = cache_s(device, kind, engine, rows, tokens, context, compute_dtype)
        if (profile := known[device.name]) is None:
            return modelled(option) + cache
        found = measured_s(option, lambda precision: profile.layer_s(device, kind, precision, step), modelled)
        return modelled(option) + cache if found is None else with_cache(found, cache, option, modelled)

    def ends(device: Device) -> tuple[float, float]:
        if not timed:
            return 0.0, 0.0
        profile = known[device.name]
        found = profile.ends_s(device, graph, step) if profile else None
        if found is not None:
            return found
        return embedding_latency_s(device, graph, rows * tokens, compute_dtype), head_latency_s(
            device, graph, rows, compute_dtype
        )

    ends_s = tuple(ends(device) for device in devices)
    measured = [(profile, device) for profile, device in zip(profiles, devices) if timed and profile]  # all devices, or none
    return PhaseCosts(
        micro_batch=rows,
        layer_s=tuple(tuple(tuple(cell(kind, device, p) for p in precisions) for device in devices) for kind in graph.kinds),
        first_s=tuple(first for first, _ in ends_s),
        last_s=tuple(last for _, last in ends_s),
        hidden_bytes=rows * tokens * sent_bytes(graph, engine),
        activations=own_activations(graph, devices, precisions, (rows, tokens, longest))
        if engine == "local"
        else bounded_activations(graph, len(devices), len(precisions), (rows, tokens, longest)),
        logits_bytes=logits_bytes(graph, rows),
        stage_s=tuple(profile.stage_s(device, graph, step) for profile, device in measured),
        message_s=tuple(profile.message_s(device, graph, step) for profile, device in measured),
    )
