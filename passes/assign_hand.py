"""assign-hand: the baseline of a patient human, the best partition with the best uniform precision."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.errors import InfeasibleError
from llmpq.plan import Optimality
from llmpq.planning.make_plan import make_plan
from llmpq.planning.search import Found, search
from llmpq.program import Program
from llmpq.solver.problem import Cells, Problem


@dataclass(frozen=True, slots=True)
class AssignHand:
    """Every uniform precision, each with its best order, partition and micro-batches, under the same quality budget."""

    name: ClassVar[str] = "assign-hand"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        budget = program.request.target.budget
        found = [best for b in range(len(program.request.precisions)) if (best := _best_uniform(program, b, budget)) is not None]
        if not found:
            raise InfeasibleError((f"{self.name}: no uniform precision fits within the quality budget",))
        best = min(found, key=lambda item: item.objective)
        optimality = Optimality(best.objective, None, False, self.name)
        plan = make_plan(program, best.candidate, best.problem, best.assignment, optimality, budget)
        return replace(program, plan=plan)


def _best_uniform(program: Program, option: int, budget: float | None) -> Found | None:
    return search(program, budget, restrict=lambda problem: only_option(problem, option))


def only_option(problem: Problem, option: int) -> Problem:
    """The problem with every other option unsupported."""

    def keep(cells: Cells) -> Cells:
        return tuple(tuple(tuple(cell if b == option else None for b, cell in enumerate(row)) for row in kind) for kind in cells)

    layer_bytes = tuple(
        tuple(tuple(cell if b == option else None for b, cell in enumerate(row)) for row in kind) for kind in problem.layer_bytes
    )
    return replace(problem, prefill_s=keep(problem.prefill_s), decode_s=keep(problem.decode_s), layer_bytes=layer_bytes)
