"""assign-joint: partition, precision of every layer, device order and sizes together, for a batch or for serving."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.plan import Optimality
from llmpq.planning.fallback import search_or_explain
from llmpq.planning.make_plan import make_plan
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
        request = program.request
        request = replace(request, gap=self.gap or request.gap, time_limit_s=self.time_limit or request.time_limit_s)
        searched = replace(program, request=request)
        answer = search_or_explain(searched)
        found = answer.found
        optimality = Optimality(found.objective, found.bound, found.proven, "exact search")
        plan = make_plan(searched, found.candidate, found.problem, found.assignment, optimality, answer.budget)
        return replace(program, plan=plan, notices=program.notices + answer.notices)
