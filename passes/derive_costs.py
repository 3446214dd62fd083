"""derive-costs: the compute dtype, and the cost table of the graph on the cluster."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.costing import costed
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class DeriveCosts:
    name: ClassVar[str] = "derive-costs"
    requires: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ("compute_dtype", "costs")

    def apply(self, program: Program) -> Program:
        return costed(program)
