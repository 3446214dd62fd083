"""Baselines: what others would do on the same cluster, under the same quality budget and scored by the same costs."""

from dataclasses import replace
from functools import partial

from llmpq.errors import InfeasibleError
from llmpq.plan import Optimality
from llmpq.planning.candidates import Group, build_problem, candidate_groups, ceiling
from llmpq.planning.fallback import Answer, search_or_explain
from llmpq.planning.make_plan import make_plan
from llmpq.planning.option_sets import only_options
from llmpq.planning.reasons import nearest, reasons, roomiest
from llmpq.planning.search import Found, Start, rows_of
from llmpq.planning.space import Space
from llmpq.program import Program
from llmpq.solver.milp import breaks
from llmpq.solver.problem import Assignment, Evaluation, Problem, evaluate
from llmpq.units import format_bytes

ALONE = Space(together=False)


def with_plan(program: Program, name: str, answer: Answer) -> Program:
    """The program with the answer as its plan; a baseline proves nothing."""
    found = answer.found
    optimality = Optimality(found.objective, None, False, name)
    plan = make_plan(program, found.candidate, found.problem, found.assignment, optimality, answer.budget)
    return replace(program, plan=plan, notices=program.notices + answer.notices)


def fastest_alone(program: Program) -> Answer:
    """The device that is fastest alone, with the best precision of every layer. Raises InfeasibleError."""

    def explain(program: Program, space: Space) -> tuple[str, ...]:
        first, *others = reasons(program, space) or ("no reason was found in time",)
        return (f"no device can run the model alone: {first}", *others)

    return search_or_explain(program, ALONE, explain=explain)


def best_uniform(program: Program) -> Answer:
    """The best devices, order, partition and micro-batches of the best uniform precision. Raises InfeasibleError."""
    restrictions = tuple(partial(only_option, option=option) for option in range(len(program.require("costs").options)))
    return search_or_explain(program, Space(restrictions=restrictions), explain=_no_uniform)


def only_option(problem: Problem, option: int) -> Problem:
    """The problem with every other option unsupported."""
    return only_options(problem, (option,))


def _no_uniform(program: Program, space: Space) -> tuple[str, ...]:
    """What each precision fails of."""
    found = []
    for restrict, option in zip(space.restrictions, program.require("costs").options, strict=True):
        lost, budget = uniform_sensitivity(program, option), program.request.target.budget
        if budget is not None and program.request.target.explicit and lost > budget:
            found.append(f"{option} costs {lost:.4g} nats per token, the budget is {budget:.4g}")
            continue
        _, _, short = nearest(program, replace(space, restrictions=(restrict,)))
        missing = [f"{device} is {format_bytes(size)} short" for device, size in short or ()]
        found.append(f"{option}: {', '.join(missing) or 'the constraints and the supported precisions admit no placement'}")
    return (f"no uniform precision is possible: {found[0]}", *found[1:])


def uniform_sensitivity(program: Program, option: str) -> float:
    """Loss with every layer at that option, nats per token."""
    total: float = program.require("sensitivity").total((option,) * program.graph.num_layers)
    return total


def even_split(program: Program) -> Answer:
    """Equal shares in the order of the cluster at the most faithful precision that fits, with the best micro-batches.

    Raises InfeasibleError when it fits at none, or breaks the user's rules or an explicit budget.
    """
    target, options = program.request.target, program.require("costs").options
    for option in sorted(range(len(options)), key=lambda b: (uniform_sensitivity(program, options[b]), b)):
        feasible = [start for start in even_splits(program, option) if is_feasible(program, start)]
        if not feasible:
            continue
        candidate, problem, assignment = min(feasible, key=lambda start: evaluate(start[1], start[2]).objective)
        evaluation = evaluate(problem, assignment)
        found = Found(candidate, problem, assignment, evaluation.objective, 0.0, False)
        if target.budget is None or evaluation.sensitivity <= target.budget:
            return Answer(found, target.budget)
        missed = f"{options[option]} costs {evaluation.sensitivity:.4g} nats per token, the budget is {target.budget:.4g}"
        if target.explicit:
            raise InfeasibleError((f"the most faithful even split that fits breaks the budget: {missed}",))
        return Answer(found, evaluation.sensitivity, (f"the default quality target cannot be met by an even split: {missed}",))
    raise InfeasibleError(no_even_split(program))


def is_feasible(program: Program, start: Start) -> bool:
    """Whether the start keeps memory, rules and the limits of latency."""
    candidate, problem, assignment = start
    if breaks(problem, rows_of(program, candidate), assignment):
        return False
    return evaluate(problem, assignment).objective <= ceiling(program, candidate)


def even_splits(program: Program, option: int) -> tuple[Start, ...]:
    """The even split at every pair of micro-batch sizes, at any quality; none where a device would be left without a layer."""
    devices, layers = len(program.request.cluster.devices), program.graph.num_layers
    if layers < devices:
        return ()
    assignment = Assignment(tuple(i * devices // layers for i in range(layers)), (option,) * layers)
    groups = whole_groups(program)
    return tuple((group.candidate(), build_problem(program, group.candidate(), None), assignment) for group in groups)


def whole_groups(program: Program) -> tuple[Group, ...]:
    """All devices at every pair of sizes; when serving with as many batches in flight as devices."""
    everything = tuple(range(len(program.request.cluster.devices)))
    groups = (group for group in candidate_groups(program) if group.devices == everything)
    return tuple(group for group in groups if group.in_flight in (None, len(everything)))


def no_even_split(program: Program) -> tuple[str, ...]:
    """What an even split fails of at each precision."""
    devices, layers, options = program.request.cluster.devices, program.graph.num_layers, program.require("costs").options
    if layers < len(devices):
        return (f"an even split needs a layer for each of {len(devices)} devices, and the model has {layers}",)
    small = {group.candidate() for group in roomiest(program, whole_groups(program))}
    found = []
    for option, name in enumerate(options):
        candidate, problem, assignment = next(start for start in even_splits(program, option) if start[0] in small)
        broken = breaks(problem, rows_of(program, candidate), assignment)
        found.append(f"{name}: {_worst(problem, evaluate(problem, assignment)) or broken[0]}")
    return (f"an even split fits at no precision: {found[0]}", *found[1:])


def _worst(problem: Problem, evaluation: Evaluation) -> str | None:
    """The device short of the most, where memory is what is in the way."""
    if evaluation.objective == float("inf"):
        return None
    short = [(held - capacity, name) for name, held, capacity in zip(problem.devices, evaluation.bytes, problem.capacity_bytes)]
    missing, device = max(short)
    return f"{device} is {format_bytes(missing)} short" if missing > 0 else None
