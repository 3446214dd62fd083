"""assign-uniform: the baseline of uniform quantization, equal shares at the fastest precision that keeps the budget."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import with_plan
from llmpq.planning.published import uniform
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignUniform:
    name: ClassVar[str] = "assign-uniform"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, uniform(program))
