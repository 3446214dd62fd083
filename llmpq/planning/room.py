"""Room: what the devices of a candidate have for layers, and what the first and the last stage hold beside them, in bytes."""

from dataclasses import dataclass

from llmpq.costs import CostTable
from llmpq.graph import FLOAT_BYTES, LayerGraph
from llmpq.planning.candidate import Candidate
from llmpq.planning.option_sets import live_bytes
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class Room:
    """capacity: [place in the order] for layers, may be below 0; first: [place] of the first stage; last: of the last one."""

    capacity: tuple[int, ...]
    first: tuple[int, ...]
    last: int


def room_of(program: Program, candidate: Candidate) -> Room:
    """Any stage is charged for the tensors of a later one and for what every stage holds; the first is paid back for both, as
    far as its embedding goes."""
    costs: CostTable = program.require("costs")
    phases = (costs.phase("prefill", candidate.prefill_micro_batch), costs.phase("decode", candidate.decode_micro_batch))
    logits = max(phase.logits_bytes for phase in phases)
    capacities = [program.request.cluster.devices[j].capacity_bytes for j in candidate.order]
    as_first = [live_bytes(phases, j, candidate.options, is_first=True) for j in candidate.order]
    if len(candidate.order) == 1:
        return Room((capacities[0] - as_first[0],), (costs.first_bytes,), costs.last_bytes_with_first + logits)
    kept = everywhere_bytes(program.graph)
    later = [live_bytes(phases, j, candidate.options) for j in candidate.order]
    return Room(
        capacity=tuple(capacity - kept - live for capacity, live in zip(capacities, later)),
        first=tuple(max(0, costs.first_bytes - kept - (live - less)) for live, less in zip(later, as_first)),
        last=costs.last_bytes - kept + logits,
    )


def everywhere_bytes(graph: LayerGraph) -> int:
    """Of the embedding's parameters that every stage holds; the last stage's own bytes have them, too."""
    return FLOAT_BYTES * sum(parameter.size for parameter in graph.first if parameter.name in graph.everywhere)
