"""assign-robust: of the plans nearly as fast as the joint one, that of least regret when device speeds are off."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.plan import Optimality
from llmpq.planning.fallback import search_or_explain
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
        answer = least_regret(program, search_or_explain(program), self.factor, self.slack, self.samples, self.seed)
        found = answer.found
        optimality = Optimality(found.objective, found.bound, found.proven, self.name)
        plan = make_plan(program, found.candidate, found.problem, found.assignment, optimality, answer.budget)
        return replace(program, plan=plan, notices=program.notices + answer.notices)
