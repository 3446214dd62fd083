"""Given plans: a plan that was written down, perhaps by hand, scored by our costs and held to the request."""

from collections.abc import Iterator

from llmpq.errors import InfeasibleError, InputError
from llmpq.plan import Plan
from llmpq.planning.candidates import build_problem, ceiling
from llmpq.planning.fallback import Answer
from llmpq.planning.robust import choice_of
from llmpq.planning.search import Found, rows_of
from llmpq.program import Program
from llmpq.solver.milp import breaks
from llmpq.solver.problem import Problem, evaluate
from llmpq.units import format_bytes
from llmpq.verify import placement_problems
from llmpq.workload import Batch, Workload


def given_plan(program: Program, plan: Plan, name: str) -> Answer:
    """The stages, options and micro-batches of `plan`; nothing that it predicts is believed.

    name: of the plan in messages. Raises InputError when it is not of this model, cluster and precisions, InfeasibleError when
    it breaks memory, a rule, a limit of latency or an explicit budget; a default budget that it breaks is told by a notice.
    """
    if problems := [*placement_problems(plan, program), *_size_problems(plan, program.request.workload)]:
        raise InputError(f"{name}: {'; '.join(problems)}; correct the plan, or the request that it is to be carried out for")
    candidate, assignment = choice_of(program, plan)
    problem, target = build_problem(program, candidate, None), program.request.target
    evaluation = evaluate(problem, assignment)
    broken = _short(problem, evaluation.bytes) or breaks(problem, rows_of(program, candidate), assignment)
    if not broken and evaluation.objective > ceiling(program, candidate):
        broken = ("a limit of latency is not kept",)
    over = target.budget is not None and evaluation.sensitivity > target.budget
    missed = f"it costs {evaluation.sensitivity:.4g} nats per token, the budget is {target.budget or 0.0:.4g}"
    if over and target.explicit:
        broken = (*broken, missed)
    if broken:
        raise InfeasibleError(tuple(f"the plan of {name}: {reason}" for reason in broken))
    found = Found(candidate, problem, assignment, evaluation.objective, 0.0, False)
    if not over:
        return Answer(found, target.budget)
    return Answer(found, evaluation.sensitivity, (f"the plan of {name} breaks the default quality target: {missed}",))


def _size_problems(plan: Plan, workload: Workload) -> Iterator[str]:
    if type(plan.workload) is not type(workload):
        yield f"is for {type(plan.workload).__name__}, the request for {type(workload).__name__}"
    elif isinstance(workload, Batch):
        prefill, decode = plan.pipeline.prefill_micro_batch, plan.pipeline.decode_micro_batch
        most = plan.pipeline.resident or workload.batch_size
        if not 1 <= prefill <= decode <= most <= workload.batch_size or decode % prefill:
            expected = f"prefill a divisor of decode, decode at most {min(most, workload.batch_size)}"
            yield f"micro-batches are prefill {prefill}, decode {decode}; expected {expected}"


def _short(problem: Problem, held: tuple[float, ...]) -> tuple[str, ...]:
    """The devices that hold more than they can, and by how much."""
    return tuple(
        f"{device} is {format_bytes(nbytes - capacity)} short"
        for device, nbytes, capacity in zip(problem.devices, held, problem.capacity_bytes, strict=True)
        if nbytes > capacity
    )
