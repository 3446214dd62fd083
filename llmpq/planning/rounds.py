"""Rounds: a batch of which fewer sequences than all are in the cache at once, while the others wait for their turn."""

from dataclasses import replace

from llmpq.costs import CostTable, kv_cache_bytes
from llmpq.costs.kv_blocks import page_size
from llmpq.costs.shard import ranks_of, shard
from llmpq.planning.candidate import Candidate
from llmpq.program import Program, Request
from llmpq.solver.problem import Cells, EndCost, Problem
from llmpq.workload import Batch, Serving, resident_sizes


def residents(request: Request) -> tuple[int | None, ...]:
    """Sequences that may be in the cache at once; None: all. Only all where the batch may not queue."""
    workload = request.workload
    if not request.queue or not isinstance(workload, Batch):
        return (None,)
    return (None, *resident_sizes(workload.batch_size)[1:])


def resident_batch(workload: Batch, resident: int | None) -> Batch:
    """The sequences that run together."""
    return workload if resident is None else replace(workload, batch_size=resident)


def rounds_of(workload: Batch, resident: int | None) -> int:
    """How often so many sequences are generated until all are: all of a round have the same lengths, so they end together."""
    return 1 if resident is None else -(-workload.batch_size // resident)


def cache_bytes(program: Program, candidate: Candidate) -> tuple[int, ...]:
    """[kind] the cache of all sequences that run at once, for a layer of each kind."""
    costs: CostTable = program.require("costs")
    request = program.request
    if isinstance(request.workload, Serving):
        blocks = request.workload.kv_blocks(candidate.running)
        return tuple(blocks * nbytes for nbytes in costs.kv_bytes)
    if candidate.resident is None:
        return costs.kv_bytes
    batch, page = resident_batch(request.workload, candidate.resident), page_size(request.engine, request.cluster.devices)
    part = shard(program.graph, ranks_of(request.cluster.devices))
    return tuple(kv_cache_bytes(kind, batch, page) for kind in part.kinds)


def in_rounds(problem: Problem, rounds: int) -> Problem:
    """The problem of one round as that of all, one after the other; the last may have fewer sequences and is charged like the
    others."""
    if rounds == 1:
        return problem

    def times(row: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(rounds * seconds for seconds in row)

    def cells(kinds: Cells) -> Cells:
        return tuple(tuple(tuple(None if s is None else rounds * s for s in row) for row in kind) for kind in kinds)

    def end(cost: EndCost) -> EndCost:
        return EndCost(times(cost.prefill_s), times(cost.decode_s), cost.bytes)

    return replace(
        problem,
        prefill_s=cells(problem.prefill_s),
        decode_s=cells(problem.decode_s),
        first_stage=end(problem.first_stage),
        last_stage=end(problem.last_stage),
        link_prefill_s=tuple(map(times, problem.link_prefill_s)),
        link_decode_s=tuple(map(times, problem.link_decode_s)),
    )
