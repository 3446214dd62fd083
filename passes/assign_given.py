"""assign-given: a plan that was written down, perhaps edited by hand, with its costs derived anew."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmpq.answers.plan_file import load_plan
from llmpq.planning.baselines import with_plan
from llmpq.planning.given import given_plan
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignGiven:
    """plan: a file of `llmpq plan --json`, or a compiled model; its stages, options and micro-batches are taken."""

    name: ClassVar[str] = "assign-given"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    plan: str = "plan.json"

    def apply(self, program: Program) -> Program:
        return with_plan(program, self.name, given_plan(program, load_plan(Path(self.plan)), self.plan))
