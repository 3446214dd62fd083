"""Quick bounds: what a group of candidates costs at least, by sums alone."""

from math import fsum, inf

from llmpq.costs import CostTable, PhaseCosts
from llmpq.plan import SERVED_TOKENS
from llmpq.planning.candidates import Group
from llmpq.planning.option_sets import OptionSet, live_bytes
from llmpq.planning.rounds import cache_bytes, resident_batch, rounds_of
from llmpq.program import Program
from llmpq.workload import Serving


def quick_bound(program: Program, group: Group, *, of_batches: bool = True) -> float:
    """A lower bound of the objective of every candidate of the group; inf when the memory of its devices is too small.

    Layers are dealt out as fractions, each at its least option, over the devices that are best at it. 0 for a batch where
    not `of_batches`: the few groups of a single search are soon bounded by more than sums, but for those of several rounds or
    of fewer options.
    """
    workload, costs = program.request.workload, program.require("costs")
    if not of_batches and not isinstance(workload, Serving) and group.resident is None and group.options is None:
        return 0.0
    used = group.in_flight or (1 if isinstance(workload, Serving) else len(group.devices))
    if _least_bytes(program, group) > _room(program, group, used):
        return inf
    trip, slowest = _layers(program, costs.phase("decode", group.decode_micro_batch), group, used)
    if isinstance(workload, Serving):
        return max(trip, used * slowest) * SERVED_TOKENS / group.candidate().running
    fill, slowest_fill = _layers(program, costs.phase("prefill", group.prefill_micro_batch), group, used)
    sequences, rounds = resident_batch(workload, group.resident).batch_size, rounds_of(workload, group.resident)
    fills, trips = (-(-sequences // size) for size in (group.prefill_micro_batch, group.decode_micro_batch))
    prefill = fill if fills == 1 else fill + (fills - 1) * slowest_fill
    decode = 0.0 if workload.gen_len == 1 else (workload.gen_len - 1) * max(trip, trips * slowest)
    return rounds * (prefill + decode)


def _layers(program: Program, step: PhaseCosts, group: Group, used: int) -> tuple[float, float]:
    """Seconds of all layers one after the other, and of the slowest of `used` stages, at least."""
    layers, kinds = len(program.graph.layer_kind), range(len(program.graph.kinds))
    per_layer = [min((_fastest(step, kind, device, group.options) for kind in kinds), default=inf) for device in group.devices]
    speeds = sorted((1.0 / seconds if seconds else inf for seconds in per_layer), reverse=True)[:used]
    together = sum(speeds)
    return layers * min(per_layer), 0.0 if together == inf else layers / together if together else inf


def _fastest(step: PhaseCosts, kind: int, device: int, options: OptionSet) -> float:
    allowed = (cell for option, cell in enumerate(step.layer_s[kind][device]) if options is None or option in options)
    return min((cell for cell in allowed if cell is not None), default=inf)


def _least_bytes(program: Program, group: Group) -> float:
    costs: CostTable = program.require("costs")
    each = [min(weights) + cache for weights, cache in zip(costs.layer_bytes, cache_bytes(program, group.candidate()))]
    ends = costs.first_bytes + (costs.last_bytes_with_first if len(group.devices) == 1 else costs.last_bytes)
    return fsum(each[kind] for kind in program.graph.layer_kind) + ends


def _room(program: Program, group: Group, used: int) -> float:
    """Bytes for weights and cache on the largest devices."""
    costs: CostTable = program.require("costs")
    phases = (costs.phase("prefill", group.prefill_micro_batch), costs.phase("decode", group.decode_micro_batch))
    devices = program.request.cluster.devices
    capacities = (max(0, devices[j].capacity_bytes - live_bytes(phases, j, group.options, is_first=True)) for j in group.devices)
    return fsum(sorted(capacities, reverse=True)[:used])
