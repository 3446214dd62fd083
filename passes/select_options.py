"""select-options: of the options that mix precisions within a layer, the few that gain most over whole layers."""

from dataclasses import dataclass
from typing import ClassVar

from llmpq.planning.part_options import select_options
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class SelectOptions:
    name: ClassVar[str] = "select-options"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")

    def apply(self, program: Program) -> Program:
        return select_options(program)
