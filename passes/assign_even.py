"""assign-even: the baseline of equal shares, every device in the order of the cluster, one precision for all layers."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.errors import InfeasibleError
from llmpq.plan import Optimality
from llmpq.planning.candidates import Candidate, build_problem, candidates
from llmpq.planning.make_plan import make_plan
from llmpq.program import Program
from llmpq.solver.problem import Assignment, Problem, evaluate


@dataclass(frozen=True, slots=True)
class AssignEven:
    """What a first attempt at an engine's default does: the most faithful precision that fits, the best micro-batches."""

    name: ClassVar[str] = "assign-even"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    def apply(self, program: Program) -> Program:
        everything = tuple(range(len(program.request.cluster.devices)))
        tried = [candidate for candidate in candidates(program) if sorted(candidate.order) == list(everything)]
        in_order = [replace(candidate, order=everything) for candidate in tried if candidate.order == tried[0].order]
        for option in _most_faithful_first(program):
            feasible = [found for candidate in in_order if (found := _try(program, candidate, option)) is not None]
            if feasible:
                objective, candidate, problem, assignment = min(feasible, key=lambda found: found[0])
                optimality = Optimality(objective, None, False, self.name)
                return replace(program, plan=make_plan(program, candidate, problem, assignment, optimality, None))
        raise InfeasibleError((f"{self.name}: an even split fits at no precision",))


def _most_faithful_first(program: Program) -> list[int]:
    table = program.require("sensitivity")
    return sorted(range(len(table.options)), key=lambda b: (sum(row[b] for row in table.rows), b))


def _try(program: Program, candidate: Candidate, option: int) -> tuple[float, Candidate, Problem, Assignment] | None:
    problem = build_problem(program, candidate, None)
    layers, devices = program.graph.num_layers, len(candidate.order)
    if layers < devices:
        return None
    assignment = Assignment(tuple(i * devices // layers for i in range(layers)), (option,) * layers)
    evaluation = evaluate(problem, assignment)
    return None if evaluation.violations else (evaluation.objective, candidate, problem, assignment)
