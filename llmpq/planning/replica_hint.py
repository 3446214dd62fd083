"""Replica hint: how often the devices of a cluster could hold the model of a plan, for who planned one pipeline."""

from collections.abc import Iterator

from llmpq.options import MOST_REPLICAS
from llmpq.plan import Plan
from llmpq.program import Program
from llmpq.workload import KV_BLOCK, Batch


def replica_hint(program: Program, plan: Plan) -> str | None:
    """A line that names --replicas where disjoint devices hold the weights of a plan for serving several times."""
    if isinstance(plan.workload, Batch) or len(plan.pipelines) > 1:
        return None
    times = min(MOST_REPLICAS, times_it_fits(program, plan))
    return f"the cluster holds the model {times} times: try --replicas {times}" if times > 1 else None


def times_it_fits(program: Program, plan: Plan) -> int:
    """Sets of devices, the largest first, whose memory as if it were one holds the plan's weights and one sequence; at least."""
    needed = _bytes_of_one(program, plan)
    room, times = 0, 0
    for free in sorted(_free_bytes(program, plan), reverse=True):
        room += free
        if room >= needed:
            room, times = 0, times + 1
    return times


def _bytes_of_one(program: Program, plan: Plan) -> int:
    """Weights, embedding and head as planned, and the cache of one sequence at its longest."""
    held = plan.ranks * sum(entry.weights + entry.embedding + entry.head for entry in plan.prediction.memory)
    graph, tokens = program.graph, (-(-plan.workload.kv_len // KV_BLOCK) + 1) * KV_BLOCK
    return held + tokens * sum(graph.kind_of(layer).kv_bytes_per_token for layer in range(graph.num_layers))


def _free_bytes(program: Program, plan: Plan) -> Iterator[int]:
    """What each device that the engine can use has beside activations."""
    activations = max(entry.activations for entry in plan.prediction.memory)
    for device, kinds in zip(program.request.cluster.devices, zip(*program.require("costs").decode[0].layer_s)):
        if any(cell is not None for options in kinds for cell in options):
            yield max(0, device.capacity_bytes - activations)
