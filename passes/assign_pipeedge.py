"""assign-pipeedge: the baseline of PipeEdge, one precision, the slowest stage of decoding as fast as it can be."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import with_plan
from llmpq.planning.published import pipeedge
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignPipeedge:
    name: ClassVar[str] = "assign-pipeedge"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, pipeedge(program))
