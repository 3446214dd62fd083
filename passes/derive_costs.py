"""derive-costs: the compute dtype, and the cost table of the graph on the cluster."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.costs import derive_costs
from llmpq.hardware.support import compute_dtype
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class DeriveCosts:
    name: ClassVar[str] = "derive-costs"
    requires: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ("compute_dtype", "costs")

    def apply(self, program: Program) -> Program:
        request = program.request
        limits = engine_limits(program.graph, request.cluster, request.precisions, request.engine)
        dtype = compute_dtype(tuple(device.type for device in limits.usable), request.engine)
        costs = derive_costs(program.graph, request.cluster, request.workload, request.precisions, dtype, request.engine)
        costs = without_devices(costs, limits.usable)
        return replace(program, compute_dtype=dtype, costs=costs, notices=program.notices + limits.notices)
