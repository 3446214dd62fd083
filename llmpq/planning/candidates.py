"""Candidates of the outer search: devices in order and micro-batch sizes, and the assignment problem of each."""

from dataclasses import dataclass

from llmpq.costs import CostTable, PhaseCosts
from llmpq.costs.table import micro_batch_sizes
from llmpq.hardware.cluster import Cluster
from llmpq.planning.orders import Order, identical_devices, link_table
from llmpq.program import Program
from llmpq.sensitivity import SensitivityTable
from llmpq.solver.problem import EndCost, Problem
from llmpq.solver.rules import RuleContext

TOKEN_BYTES = 8  # token ids return to the first stage as int64


@dataclass(frozen=True, slots=True)
class Candidate:
    """Devices (indexes into the cluster) in pipeline order, and sequences per prefill and decode micro-batch."""

    order: Order
    prefill_micro_batch: int
    decode_micro_batch: int


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates of the same sizes: these devices, ascending, in any order; more than one may also be left out."""

    devices: Order
    prefill_micro_batch: int
    decode_micro_batch: int

    def candidate(self, order: Order | None = None) -> Candidate:
        """Its candidate of that order, of the cluster's own by default."""
        return Candidate(self.devices if order is None else order, self.prefill_micro_batch, self.decode_micro_batch)


def candidate_groups(program: Program, *, together: bool = True) -> tuple[Group, ...]:
    """All devices `together`, and each kind of device alone, at every pair of micro-batch sizes.

    Alone is a case of its own because a tied head is then not copied.
    """
    everything = tuple(range(len(program.request.cluster.devices)))
    several = (everything,) if together and len(everything) > 1 else ()
    sizes = micro_batch_sizes(program.request.workload, len(everything))
    return tuple(
        Group(devices, *pair) for devices in (*several, *(twins[:1] for twins in identical_devices(program))) for pair in sizes
    )


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
        capacity_bytes=tuple(cluster.devices[j].capacity_bytes - activations for j in order),
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


def _layer_bytes(costs: CostTable, phase: PhaseCosts, order: Order) -> tuple[tuple[tuple[int | None, ...], ...], ...]:
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


def _ends(prefill_s: tuple[float, ...], decode_s: tuple[float, ...], nbytes: int, order: Order) -> EndCost:
    return EndCost(tuple(prefill_s[j] for j in order), tuple(decode_s[j] for j in order), tuple(nbytes for _ in order))


def _links(cluster: Cluster, order: Order, hidden_bytes: int, rows: int) -> tuple[tuple[float, ...], ...]:
    """Forward links carry the hidden state, backward ones (the return from last to first) the tokens."""
    links = link_table(cluster)
    return tuple(
        tuple(
            0.0 if a == b else links[i][j].transfer_s(hidden_bytes if a < b else rows * TOKEN_BYTES) for b, j in enumerate(order)
        )
        for a, i in enumerate(order)
    )
