"""assign-given: a plan that was written down, perhaps edited by hand, with its costs derived anew."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from llmpq.answers.plan_file import load_plan
from llmpq.planning.baselines import with_plan
from llmpq.planning.costing import on_groups_of
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
        plan = load_plan(Path(self.plan))
        place = on_groups_of(program, plan)
        found = with_plan(place, self.name, given_plan(place, plan, self.plan))
        own = replace(found.require("plan"), cluster=program.request.cluster)
        return replace(program, plan=own, notices=found.notices)
