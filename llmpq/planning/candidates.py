"""Candidates of the outer search: device orders and micro-batch sizes, and the assignment problem of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from llmpq.costs import CostTable, PhaseCosts
from llmpq.costs.table import micro_batch_sizes
from llmpq.hardware.cluster import Cluster, Device
from llmpq.program import Program
from llmpq.sensitivity import SensitivityTable
from llmpq.solver.problem import EndCost, Problem
from llmpq.solver.rules import RuleContext

MAX_ORDERS = 60
TOKEN_BYTES = 8  # token ids return to the first stage as int64


@dataclass(frozen=True, slots=True)
class Candidate:
    """Devices (indexes into the cluster) in pipeline order, and sequences per prefill and decode micro-batch."""

    order: tuple[int, ...]
    prefill_micro_batch: int
    decode_micro_batch: int


def candidates(program: Program) -> tuple[Candidate, ...]:
    """Every device alone (its tied head is not copied), and every distinct order of all devices, at every pair of sizes."""
    cluster = program.request.cluster
    alone = tuple((j,) for j in range(len(cluster.devices)))
    together = distinct_orders(cluster) if len(cluster.devices) > 1 else ()
    sizes = micro_batch_sizes(program.request.workload, len(cluster.devices))
    return tuple(Candidate(order, prefill, decode) for order in (*together, *alone) for prefill, decode in sizes)


def distinct_orders(cluster: Cluster) -> tuple[tuple[int, ...], ...]:
    """Orders of all devices that differ in more than a swap of identical ones.

    Above MAX_ORDERS only orders that keep identical devices adjacent; above it still, the first MAX_ORDERS of those.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for j, device in enumerate(cluster.devices):
        groups.setdefault(_identity(device), []).append(j)
    everything = list(_multiset_orders(tuple(tuple(group) for group in groups.values()), MAX_ORDERS + 1))
    if len(everything) <= MAX_ORDERS:
        return tuple(everything)
    blocks = permutations(groups.values())
    return tuple(tuple(j for group in block for j in group) for block, _ in zip(blocks, range(MAX_ORDERS)))


def orders_are_complete(cluster: Cluster) -> bool:
    """Whether `distinct_orders` left none out."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for j, device in enumerate(cluster.devices):
        groups.setdefault(_identity(device), []).append(j)
    return sum(1 for _ in _multiset_orders(tuple(tuple(group) for group in groups.values()), MAX_ORDERS + 1)) <= MAX_ORDERS


def _identity(device: Device) -> tuple[object, ...]:
    return (device.type.name, device.memory_bytes, device.reserve_bytes, device.speed, device.host)


def _multiset_orders(groups: tuple[tuple[int, ...], ...], limit: int) -> Iterator[tuple[int, ...]]:
    """Orders of all indexes with each group's members ascending; at most `limit` of them."""
    produced = 0

    def extend(prefix: tuple[int, ...], left: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, ...]]:
        nonlocal produced
        if produced >= limit:
            return
        if not any(left):
            produced += 1
            yield prefix
        for g, group in enumerate(left):
            if group:
                yield from extend((*prefix, group[0]), (*left[:g], group[1:], *left[g + 1 :]))

    return extend((), groups)


def rule_context(program: Program, candidate: Candidate) -> RuleContext:
    """What the user's rules are read against: the devices of this candidate, in its order."""
    cluster, graph, precisions = program.request.cluster, program.graph, program.request.precisions
    return RuleContext(
        num_layers=graph.num_layers,
        devices=tuple(cluster.devices[j].name for j in candidate.order),
        known_devices=tuple(device.name for device in cluster.devices),
        options=tuple(precision.name for precision in precisions),
        option_bits=tuple(float(precision.num_bits) for precision in precisions),
        layer_parameters=tuple(graph.kind_of(i).parameters for i in range(graph.num_layers)),
    )


def build_problem(program: Program, candidate: Candidate, sensitivity_budget: float | None) -> Problem:
    """The inner problem of one candidate: contiguous ranges and an option per layer, in llmpq-problem-2."""
    costs: CostTable = program.require("costs")
    table: SensitivityTable = program.require("sensitivity")
    graph, workload, cluster = program.graph, program.request.workload, program.request.cluster
    prefill = costs.phase("prefill", candidate.prefill_micro_batch)
    decode = costs.phase("decode", candidate.decode_micro_batch)
    order = candidate.order
    alone = len(order) == 1
    activations = max(prefill.activation_bytes, decode.activation_bytes)
    logits = max(prefill.logits_bytes, decode.logits_bytes)
    head = costs.last_bytes_with_first if alone else costs.last_bytes
    return Problem(
        options=costs.options,
        devices=tuple(costs.devices[j] for j in order),
        layer_kind=graph.layer_kind,
        prefill_s=tuple(tuple(cells[j] for j in order) for cells in prefill.layer_s),
        decode_s=tuple(tuple(cells[j] for j in order) for cells in decode.layer_s),
        layer_bytes=_layer_bytes(costs, decode, order),
        first_stage=_ends(prefill.first_s, decode.first_s, costs.first_bytes, order),
        last_stage=_ends(prefill.last_s, decode.last_s, head + logits, order),
        link_prefill_s=_links(cluster, order, prefill.hidden_bytes, candidate.prefill_micro_batch),
        link_decode_s=_links(cluster, order, decode.hidden_bytes, candidate.decode_micro_batch),
        overlap=False,
        capacity_bytes=tuple(max(0, cluster.devices[j].capacity_bytes - activations) for j in order),
        sensitivity=table.rows,
        sensitivity_budget=sensitivity_budget,
        theta=program.request.target.theta,
        prefill_micro_batches=-(-workload.batch_size // candidate.prefill_micro_batch),
        decode_micro_batches=-(-workload.batch_size // candidate.decode_micro_batch),
        gen_len=workload.gen_len,
        decode_model="round_trip",
        every_device_used=False,
        first_and_last_used=False,
    )


def _layer_bytes(costs: CostTable, phase: PhaseCosts, order: tuple[int, ...]) -> tuple[tuple[tuple[int | None, ...], ...], ...]:
    """[kind][device][option]: weights and the cache of all sequences; None where the device cannot run the option."""
    return tuple(
        tuple(
            tuple(
                None if cell is None else weights + costs.kv_bytes[k]
                for cell, weights in zip(phase.layer_s[k][j], costs.layer_bytes[k])
            )
            for j in order
        )
        for k in range(len(costs.kv_bytes))
    )


def _ends(prefill_s: tuple[float, ...], decode_s: tuple[float, ...], nbytes: int, order: tuple[int, ...]) -> EndCost:
    return EndCost(tuple(prefill_s[j] for j in order), tuple(decode_s[j] for j in order), tuple(nbytes for _ in order))


def _links(cluster: Cluster, order: tuple[int, ...], hidden_bytes: int, rows: int) -> tuple[tuple[float, ...], ...]:
    """Forward links carry the hidden state, backward ones (the return from last to first) the tokens."""
    names = [cluster.devices[j].name for j in order]
    return tuple(
        tuple(
            0.0 if a == b else cluster.link(names[a], names[b]).transfer_s(hidden_bytes if a < b else rows * TOKEN_BYTES)
            for b in range(len(names))
        )
        for a in range(len(names))
    )
