"""assign-even: the baseline of equal shares, every device in the order of the cluster, one precision for all layers."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.baselines import even_split, with_plan
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignEven:
    """What a first attempt at an engine's default does: the most faithful precision that fits, the best micro-batches."""

    name: ClassVar[str] = "assign-even"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, even_split(program))
