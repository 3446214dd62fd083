"""assign-fastest: the baseline of one device, the one that is fastest alone, with the best precision of every layer."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import fastest_alone, with_plan
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignFastest:
    name: ClassVar[str] = "assign-fastest"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, fastest_alone(program))
