"""derive-costs: the compute dtype, and the cost table of the graph on the cluster."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.costs import derive_costs
from llmpq.hardware.support import compute_dtype
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class DeriveCosts:
    name: ClassVar[str] = "derive-costs"
    requires: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ("compute_dtype", "costs")

    def apply(self, program: Program) -> Program:
        request = program.request
        dtype = compute_dtype(tuple(device.type for device in request.cluster.devices), request.engine)
        costs = derive_costs(program.graph, request.cluster, request.workload, request.precisions, dtype, request.engine)
        return replace(program, compute_dtype=dtype, costs=costs)
