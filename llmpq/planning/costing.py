"""Costing: the compute dtype and the cost table of a request, on its cluster or on groups of its devices."""

from dataclasses import replace

from llmpq.costs import derive_costs
from llmpq.costs.shard import ranks_of, shard, unsplittable
from llmpq.errors import InputError
from llmpq.hardware.cluster import TOGETHER
from llmpq.hardware.groups import grouped
from llmpq.hardware.support import compute_dtype, tensor_parallel_sizes
from llmpq.plan import Plan
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.program import Program


def costed(program: Program) -> Program:
    """The program with the compute dtype and the cost table of its request; notices tell what the engine cannot use.

    Raises InfeasibleError when the engine runs on none of the devices.
    """
    request = program.request
    part = shard(program.graph, ranks_of(request.cluster.devices))
    limits = engine_limits(part, request.cluster, request.precisions, request.engine)
    dtype = compute_dtype(tuple(device.type for device in limits.usable), request.engine)
    asked = (program.graph, request.cluster, request.workload, request.precisions, dtype, request.engine)
    costs = derive_costs(*asked, profile=request.profile, queue=request.queue)
    costs = without_devices(costs, limits.usable)
    return replace(program, compute_dtype=dtype, costs=costs, notices=program.notices + limits.notices)


def on_groups(program: Program, ranks: int) -> Program | None:
    """The program on groups of so many devices, costed; itself for one rank, None where the cluster has no such group."""
    if ranks == 1:
        return program
    cluster = grouped(program.request.cluster, ranks)
    if cluster is None:
        return None
    found = costed(replace(program, request=replace(program.request, cluster=cluster)))
    return replace(found, notices=program.notices)


def on_groups_of(program: Program, plan: Plan) -> Program:
    """The program on the groups that the plan's stages run on, and on others of that size; itself where they are single devices.

    Raises InputError where the engine or the model has no such groups.
    """
    cluster, engine = program.request.cluster, program.request.engine
    if not any(TOGETHER in stage.device for stage in plan.stages):
        return program
    groups = tuple(cluster.device(stage.device) for stage in plan.stages)
    sizes = {group.ranks for group in groups}
    what = f"the plan of {plan.model} has stages on groups of {', '.join(map(str, sorted(sizes)))} devices"
    known = (1, *tensor_parallel_sizes(engine))
    if len(sizes) > 1 or not sizes <= set(known):
        raise InputError(f"{what}; engine {engine} takes one size for all stages, of {', '.join(map(str, known))}")
    (ranks,) = sizes
    why = unsplittable(program.graph, ranks)
    if why is not None:
        raise InputError(f"{what}, and {why}; plan with --tensor-parallel 1")
    request = replace(program.request, cluster=grouped(cluster, ranks, groups) or cluster)
    return replace(costed(replace(program, request=request)), notices=program.notices)
