"""assign-adabits: the baseline of adaptive quantization alone, the least loss of quality that memory allows."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import with_plan
from llmpq.planning.published import adabits
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignAdabits:
    name: ClassVar[str] = "assign-adabits"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, adabits(program))
