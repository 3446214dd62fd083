"""assign-transfer: the baseline of bitwidth transfer, LLM-PQ's heuristic from the least loss towards speed."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import with_plan
from llmpq.planning.transfer import transfer
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignTransfer:
    name: ClassVar[str] = "assign-transfer"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, transfer(program))
