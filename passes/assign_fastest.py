"""assign-fastest: the baseline of one device, the one that is fastest alone, with the best precision of every layer."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.errors import InfeasibleError
from llmpq.plan import Optimality
from llmpq.planning.make_plan import make_plan
from llmpq.planning.search import search
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignFastest:
    name: ClassVar[str] = "assign-fastest"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        budget = program.request.target.budget
        found = search(program, budget, accept=lambda candidate: len(candidate.order) == 1)
        if found is None:
            raise InfeasibleError((f"{self.name}: no single device holds the model within the quality budget",))
        optimality = Optimality(found.objective, None, False, self.name)
        plan = make_plan(program, found.candidate, found.problem, found.assignment, optimality, budget)
        return replace(program, plan=plan)
