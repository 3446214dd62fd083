"""assign-hand: the baseline of a patient human, the best partition with the best uniform precision."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.planning.baselines import best_uniform, with_plan
from llmpq.planning.group_search import best_on_groups
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignHand:
    """Every uniform precision, each with its best devices, order, partition and micro-batches, under the same quality budget.

    Where the engine has tensor-parallel groups, of every size, too.
    """

    name: ClassVar[str] = "assign-hand"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        answer = best_on_groups(program, best_uniform)
        found = with_plan(answer.program, self.name, answer.answer)
        return replace(program, plan=replace(found.require("plan"), cluster=program.request.cluster), notices=found.notices)
