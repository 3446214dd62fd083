"""Published planners as baselines: AdaBits, PipeEdge and uniform quantization, all devices in the order of the cluster."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.planning.baselines import even_splits, is_feasible, no_even_split, only_option, uniform_sensitivity, whole_groups
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.fallback import Answer
from llmpq.planning.fit import without_seconds
from llmpq.planning.search import Found, Start, rows_of
from llmpq.program import Program
from llmpq.solver.milp import shortage
from llmpq.solver.problem import Cells, EndCost, Evaluation, Problem, evaluate
from llmpq.solver.solve import solve
from llmpq.units import format_bytes
from llmpq.workload import Serving

GAP = 1e-4  # relative, of the objective of one of these problems
SOLVE_LIMIT_S = 10.0  # of one of them

Restriction = Callable[[Problem], Problem]


def adabits(program: Program) -> Answer:
    """Least loss of quality that memory allows, whatever the speed; one micro-batch size for prefill and decode.

    Of the sizes the fastest whose least loss keeps the budget. Raises InfeasibleError, also where an explicit one is broken.
    """
    starts = [start for candidate in equal_sizes(program) for start in least_lossy(program, candidate)]
    if not starts:
        raise InfeasibleError(_short(program, "AdaBits", lambda problem: problem))
    return best_within_budget(program, starts, "AdaBits")


def least_lossy(program: Program, candidate: Candidate) -> tuple[Start, ...]:
    """The candidate's placement of least sensitivity, ends used; nothing where none fits or keeps the limits of latency."""
    plain = build_problem(program, candidate, None)
    return _solved(program, candidate, without_seconds(_with_ends(plain, candidate)))


def pipeedge(program: Program) -> Answer:
    """The most faithful uniform precision that fits, partitioned so that the slowest stage of decoding is the fastest.

    One micro-batch size for prefill and decode; prefill plays no part. Raises InfeasibleError.
    """
    options = program.require("costs").options
    for option in sorted(range(len(options)), key=lambda b: (uniform_sensitivity(program, options[b]), b)):
        starts = list(_fastest_bottlenecks(program, option))
        if starts:
            return best_within_budget(program, starts, "PipeEdge")
    last = partial(only_option, option=min(range(len(options)), key=partial(_bytes, program)))
    raise InfeasibleError(_short(program, "PipeEdge", last))


def _fastest_bottlenecks(program: Program, option: int) -> Iterator[Start]:
    for candidate in equal_sizes(program):
        plain = only_option(build_problem(program, candidate, None), option)
        yield from _solved(program, candidate, _bottleneck(_with_ends(plain, candidate)))


def _bottleneck(problem: Problem) -> Problem:
    """Only the slowest stage of decoding counts: with as many micro-batches as devices a trip never takes longer."""

    def free(end: EndCost) -> EndCost:
        return replace(end, prefill_s=(0.0,) * len(problem.devices))

    nothing: Cells = tuple(tuple(tuple(None if c is None else 0.0 for c in row) for row in kind) for kind in problem.prefill_s)
    return replace(
        problem,
        prefill_s=nothing,
        first_stage=free(problem.first_stage),
        last_stage=free(problem.last_stage),
        link_prefill_s=tuple((0.0,) * len(problem.devices) for _ in problem.devices),
        decode_micro_batches=max(len(problem.devices), problem.decode_micro_batches),
        decode_model="round_trip",
        gen_len=2,
        theta=None,
    )


def uniform(program: Program) -> Answer:
    """Equal shares at the uniform precision that is the fastest of those that fit and keep the budget."""
    starts = [
        start
        for option in range(len(program.require("costs").options))
        for start in even_splits(program, option)
        if is_feasible(program, start)
    ]
    if not starts:
        raise InfeasibleError(no_even_split(program))
    return best_within_budget(program, starts, "an even split")


def best_within_budget(program: Program, starts: Sequence[Start], who: str) -> Answer:
    """The fastest that keeps the budget, else the one of least loss: an InfeasibleError where the budget was asked for."""
    budget = program.request.target.budget
    kept = [start for start in starts if budget is None or _evaluate(start).sensitivity <= budget]
    if kept:
        return within_budget(program, min(kept, key=lambda start: _evaluate(start).objective), who)
    return within_budget(program, min(starts, key=_loss_then_speed), who)


def within_budget(program: Program, start: Start, who: str) -> Answer:
    """The plan as an answer: an explicit budget that it breaks is an InfeasibleError, a default one a notice."""
    candidate, problem, assignment = start
    evaluation, target = evaluate(problem, assignment), program.request.target
    found = Found(candidate, problem, assignment, evaluation.objective, 0.0, False)
    if target.budget is None or evaluation.sensitivity <= target.budget:
        return Answer(found, target.budget)
    missed = f"its plan costs {evaluation.sensitivity:.4g} nats per token, the budget is {target.budget:.4g}"
    if target.explicit:
        raise InfeasibleError((f"{who} breaks the quality budget: {missed}",))
    return Answer(found, evaluation.sensitivity, (f"the default quality target cannot be met by {who}: {missed}",))


def equal_sizes(program: Program) -> tuple[Candidate, ...]:
    """All devices in the order of the cluster, prefill and decode in micro-batches of one size; every step when serving."""
    groups = whole_groups(program)
    return tuple(
        group.candidate()
        for group in groups
        if isinstance(program.request.workload, Serving) or group.prefill_micro_batch == group.decode_micro_batch
    )


def _solved(program: Program, candidate: Candidate, problem: Problem) -> tuple[Start, ...]:
    """The best placement of a problem made from the candidate's, with the candidate's own problem to score it by."""
    rows = rows_of(program, candidate)
    assignment = solve(problem, gap=GAP, time_limit_s=SOLVE_LIMIT_S, rows=rows).assignment
    if assignment is None:
        return ()
    start = (candidate, build_problem(program, candidate, None), assignment)
    return (start,) if is_feasible(program, start) else ()


def _with_ends(problem: Problem, candidate: Candidate) -> Problem:
    """As published: the first and the last device hold a layer; when serving every device, as the batches in flight want it."""
    return replace(problem, first_and_last_used=problem.num_layers > 1, every_device_used=candidate.in_flight is not None)


def _evaluate(start: Start) -> Evaluation:
    return evaluate(start[1], start[2])


def _loss_then_speed(start: Start) -> tuple[float, float]:
    evaluation = _evaluate(start)
    return round(evaluation.sensitivity, 9), evaluation.objective


def _bytes(program: Program, option: int) -> int:
    costs = program.require("costs")
    return sum(costs.layer_bytes[kind][option] for kind in program.graph.layer_kind)


def _short(program: Program, who: str, restrict: Restriction) -> tuple[str, ...]:
    """Who is short by how much at the micro-batches that need the least."""
    told = []
    for candidate in equal_sizes(program):
        try:
            found = shortage(
                restrict(_with_ends(build_problem(program, candidate, None), candidate)), rows_of(program, candidate)
            )
        except (InfeasibleError, TimeLimitError):
            continue
        told.append((sum(missing for _, missing in found), found))
    if not told:
        return (f"{who} admits no placement under the constraints and the supported precisions",)
    devices = ", ".join(f"{device} is {format_bytes(missing)} short" for device, missing in min(told)[1])
    return (f"{who} does not fit: {devices or 'the constraints are in the way'}",)
