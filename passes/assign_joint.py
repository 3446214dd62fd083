"""assign-joint: partition, precision of every layer, device order and sizes together, for a batch or for serving."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.planning.joint import joint_plan
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignJoint:
    """`gap` (relative) and `time_limit` (seconds) of the whole search override the request where positive."""

    name: ClassVar[str] = "assign-joint"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    gap: float = 0.0
    time_limit: float = 0.0

    def apply(self, program: Program) -> Program:
        asked = program.request
        request = replace(asked, gap=self.gap or asked.gap, time_limit_s=self.time_limit or asked.time_limit_s)
        return replace(joint_plan(replace(program, request=request)), request=asked)
