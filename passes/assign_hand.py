"""assign-hand: the baseline of a patient human, the best partition with the best uniform precision."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import best_uniform, with_plan
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignHand:
    """Every uniform precision, each with its best devices, order, partition and micro-batches, under the same quality budget."""

    name: ClassVar[str] = "assign-hand"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, best_uniform(program))
