"""assign-robust: of the plans nearly as fast as the joint one, that of least regret when device speeds are off."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.plan import Optimality
from llmpq.planning.group_search import search_groups
from llmpq.planning.make_plan import make_plan
from llmpq.planning.robust import least_regret
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class AssignRobust:
    """factor: speeds are off by up to this; slack: of the joint plan's seconds, what may be given up; samples, and their seed."""

    name: ClassVar[str] = "assign-robust"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    factor: float = 1.2
    slack: float = 0.02
    samples: int = 20
    seed: int = 0

    def apply(self, program: Program) -> Program:
        grouped = search_groups(program)
        answer = least_regret(grouped.program, grouped.answer, self.factor, self.slack, self.samples, self.seed)
        found = answer.found
        optimality = Optimality(found.objective, found.bound, found.proven, self.name)
        plan = make_plan(grouped.program, found.candidate, found.problem, found.assignment, optimality, answer.budget)
        own = replace(plan, cluster=program.request.cluster)
        return replace(program, plan=own, notices=program.notices + answer.notices)
