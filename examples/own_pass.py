"""A pass of your own: an assignment that shares layers out by memory, beside the joint plan of llmpq.

python examples/own_pass.py
"""

from dataclasses import dataclass
from typing import ClassVar

import llmpq
from llmpq.planning.baselines import is_feasible, whole_groups, with_plan
from llmpq.planning.candidates import build_problem
from llmpq.planning.fallback import Answer
from llmpq.planning.search import Found
from llmpq.program import Program
from llmpq.solver.problem import Assignment, evaluate


@dataclass(frozen=True, slots=True)
class AssignByMemory:
    """Layers in proportion to the memory of each device, in the order of the cluster, all at one precision."""

    name: ClassVar[str] = "assign-by-memory"
    requires: ClassVar[tuple[str, ...]] = ("costs", "sensitivity")
    provides: ClassVar[tuple[str, ...]] = ("plan",)

    precision: str = "w4a16"

    def apply(self, program: Program) -> Program:
        layers, option = program.graph.num_layers, program.require("costs").options.index(self.precision)
        assignment = Assignment(shares([d.capacity_bytes for d in program.request.cluster.devices], layers), (option,) * layers)
        candidates = [group.candidate() for group in whole_groups(program)]
        starts = [(candidate, build_problem(program, candidate, None), assignment) for candidate in candidates]
        fitting = [start for start in starts if is_feasible(program, start)]
        if not fitting:
            raise llmpq.errors.InfeasibleError((f"shares by memory do not fit at {self.precision}",))
        candidate, problem, _ = min(fitting, key=lambda start: evaluate(start[1], start[2]).objective)
        evaluation = evaluate(problem, assignment)
        found = Found(candidate, problem, assignment, evaluation.objective, 0.0, False)
        return with_plan(program, self.name, Answer(found, evaluation.sensitivity))


def shares(memory: list[int], layers: int) -> tuple[int, ...]:
    """The device of every layer, by the largest remainder."""
    ends = [round(layers * sum(memory[: j + 1]) / sum(memory)) for j in range(len(memory))]
    return tuple(next(j for j, end in enumerate(ends) if layer < end) for layer in range(layers))


def main() -> None:
    workload = llmpq.Batch(batch_size=16, prompt_len=512, gen_len=128)
    for assign in ("own_pass:AssignByMemory{precision=w4a16}", "assign-joint"):
        plan = llmpq.make_plan("llama-2-13b", "2xT4,1xRTX3090", workload, assign=assign, time_limit_s=5.0)
        spans = ", ".join(f"{stage.device} {len(stage.options)}" for stage in plan.stages)
        print(f"{assign.partition(':')[2] or assign}: {plan.tokens_per_s:.1f} tokens/s, layers {spans}")


if __name__ == "__main__":
    main()
