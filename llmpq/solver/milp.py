"""MILP: the assignment problem solved by HiGHS on one thread, answers re-evaluated and memory re-checked exactly."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from time import perf_counter

from llmpq.errors import InfeasibleError, LlmpqError, TimeLimitError
from llmpq.solver.classes import classify
from llmpq.solver.linear import Limits, run_highs
from llmpq.solver.model import Model, add_budget, add_memory, latency_model, placement_model
from llmpq.solver.narrow import narrow
from llmpq.solver.problem import Assignment, Problem, Row, evaluate
from llmpq.solver.solution import DEFAULT_GAP, Solution, Status, relative_gap

SOLVER = "highs"
SHAVES = (0.0, 1e-8, 1e-6)  # of every limit, tried in turn when a point that HiGHS accepts breaks one by rounding
GUESSES = (0.01, 0.03, 0.08)  # of the optimum above the bound so far: each is refuted, which raises the bound, or met
GUESS_SHARE = 0.4  # of the time left, so that the last run always has some
SHORTAGE_GAP = 1e-3  # of the bytes too many: an explanation, not a plan
EXCESS_SCALE = 1000.0  # of the model's objective, as for memory

Shortage = tuple[tuple[str, int], ...]  # (device, bytes short)
Builder = Callable[[float], Model]
Objective = Callable[[Assignment], float]


def solve(
    problem: Problem,
    *,
    gap: float = DEFAULT_GAP,
    time_limit_s: float | None = None,
    rows: tuple[Row, ...] = (),
    cutoff: float | None = None,
) -> Solution:
    """The assignment of least objective within `gap`, with a proven bound; `cutoff`: only better ones are of interest.

    Objective in seconds by `evaluate`; rows hold as well. Deterministic unless the time limit strikes.
    """
    started = perf_counter()
    floor = relaxation_bound(problem, rows, time_limit_s)
    if floor is None:
        return _nothing(cutoff, perf_counter() - started)
    interrupted: Solution | None = None
    for growth in GUESSES if floor > 0 else ():
        ceiling = min(floor * (1.0 + growth), inf if cutoff is None else cutoff)
        left = None if time_limit_s is None else (time_limit_s - (perf_counter() - started)) * GUESS_SHARE
        solution = _solve_below(problem, rows, Limits(gap, left, ceiling), ceiling)
        if solution.status == "optimal" or (solution.status == "cutoff" and ceiling == cutoff):
            return replace(solution, seconds=perf_counter() - started)
        if solution.status != "cutoff":
            interrupted = solution
            break
        floor = max(floor, solution.bound or 0.0)
    left = None if time_limit_s is None else time_limit_s - (perf_counter() - started)
    solution = _solve_below(problem, rows, Limits(gap, left, cutoff), None)
    better = solution if interrupted is None else _better(solution, interrupted)
    return _with_floor(better, floor, gap, perf_counter() - started)


def _solve_below(problem: Problem, rows: tuple[Row, ...], limits: Limits, ceiling: float | None) -> Solution:
    def build(shave: float) -> Model:
        model = latency_model(problem, rows, shave)
        return model if ceiling is None else narrow(problem, model, ceiling)

    return _solve(problem, rows, build, lambda assignment: evaluate(problem, assignment).objective, limits)


def _better(solution: Solution, interrupted: Solution) -> Solution:
    """The full run, with the plan of one that was cut short where that is better."""
    if interrupted.objective is None or (solution.objective is not None and solution.objective <= interrupted.objective):
        return solution
    if solution.status not in ("feasible", "time_limit"):
        return solution
    return replace(interrupted, bound=solution.bound, proven=False)


def _with_floor(solution: Solution, floor: float, gap: float, seconds: float) -> Solution:
    """The solution with a bound proven on the way to it."""
    if solution.status in ("infeasible", "cutoff"):
        return replace(solution, seconds=seconds)
    bound = floor if solution.bound is None else max(solution.bound, floor)
    if solution.objective is None:
        return replace(solution, bound=bound, seconds=seconds)
    bound = min(bound, solution.objective)
    proven = solution.proven or relative_gap(solution.objective, bound) <= gap
    return replace(solution, bound=bound, proven=proven, status="optimal" if proven else "feasible", seconds=seconds)


def least_sensitivity(problem: Problem, rows: tuple[Row, ...] = (), time_limit_s: float | None = None) -> Solution:
    """The assignment of least sum of sensitivity (the objective, nats per token) that fits; budget and seconds play no part."""
    unbounded = without_budget(problem)
    sensitivity = problem.sensitivity

    def objective(assignment: Assignment) -> float:
        return evaluate(unbounded, assignment).sensitivity

    def build(shave: float) -> Model:
        unit = max((abs(value) for row in sensitivity for value in row), default=0.0) or 1.0
        model = placement_model(unbounded, classify(unbounded, rows), unit, shave)
        add_memory(unbounded, model, shave)
        for cell, column in model.counts.items():
            model.linear.cost[column] = model.classes.sensitivity(unbounded, cell) / unit
        return model

    return _solve(unbounded, rows, build, objective, Limits(DEFAULT_GAP, time_limit_s))


def without_budget(problem: Problem) -> Problem:
    """The problem at any loss of quality."""
    return replace(problem, sensitivity_budget=None)


def relaxation_bound(problem: Problem, rows: tuple[Row, ...] = (), time_limit_s: float | None = None) -> float | None:
    """Bound of the linear relaxation in seconds, a lower bound of every objective (0 when it is not solved in time).

    None when even that is infeasible.
    """
    model = latency_model(problem, rows)
    outcome = run_highs(model.linear, Limits(time_limit_s=time_limit_s), relaxed=True)
    if outcome.status == "infeasible":
        return None
    return outcome.bound * model.unit if outcome.status == "optimal" and outcome.bound is not None else 0.0


def shortage(problem: Problem, rows: tuple[Row, ...] = (), time_limit_s: float = 10.0) -> Shortage:
    """Of the placement with the least bytes too many in all: (device, bytes short) for those short; empty when all fits.

    The budget and the rows hold in it. Raises InfeasibleError when they, with use of devices and unsupported cells, admit
    no placement at any memory; TimeLimitError when none was found in time.
    """
    unlimited = with_ample_memory(problem, range(len(problem.devices)))

    def excess(assignment: Assignment) -> Shortage:
        held = evaluate(problem, assignment).bytes
        used = sorted(assignment.used_devices)
        over = [(problem.devices[device], held[device] - problem.capacity_bytes[device]) for device in used]
        return tuple((device, short) for device, short in over if short > 0)

    def build(shave: float) -> Model:
        classes = classify(problem, rows, by_sensitivity=problem.sensitivity_budget is not None)
        model = placement_model(problem, classes, max(1.0, *map(abs, problem.capacity_bytes)) / EXCESS_SCALE, shave)
        add_memory(problem, model, 0.0, {device: model.linear.column(cost=1.0) for device in range(len(problem.devices))})
        add_budget(problem, model, shave)
        return model

    limits = Limits(SHORTAGE_GAP, time_limit_s)
    solution = _solve(unlimited, rows, build, lambda assignment: float(sum(short for _, short in excess(assignment))), limits)
    if solution.status == "infeasible":
        raise InfeasibleError(("the constraints and the supported precisions admit no placement, whatever the memory",))
    if solution.assignment is None:
        raise TimeLimitError(f"no placement was found within {time_limit_s:g} s; give more time")
    return excess(solution.assignment)


def with_ample_memory(problem: Problem, devices: Iterable[int]) -> Problem:
    """The problem in which these devices hold whatever is put on them."""
    most = sum(max((size or 0 for row in problem.layer_bytes[kind] for size in row), default=0) for kind in problem.layer_kind)
    ample = most + sum(problem.first_stage.bytes) + sum(problem.last_stage.bytes)
    chosen = set(devices)
    capacity = tuple(max(c, ample) if device in chosen else c for device, c in enumerate(problem.capacity_bytes))
    return replace(problem, capacity_bytes=capacity)


def _solve(problem: Problem, rows: tuple[Row, ...], build: Builder, objective: Objective, limits: Limits) -> Solution:
    """Runs HiGHS, again with limits shaved by a hair when rounding broke one; the bound is that of the untouched problem."""
    started = perf_counter()
    bound: float | None = None
    for shave in SHAVES:
        model = build(shave)
        left = None if limits.time_limit_s is None else limits.time_limit_s - (perf_counter() - started)
        cutoff = None if limits.cutoff is None else limits.cutoff / model.unit
        outcome = run_highs(model.linear, Limits(limits.gap, left, cutoff, tight=shave > 0.0))
        if not shave:
            bound = None if outcome.bound is None else outcome.bound * model.unit
            if outcome.status == "infeasible":
                return _nothing(limits.cutoff, perf_counter() - started)
        if outcome.values is None and outcome.status == "stopped":
            return Solution(None, None, bound, False, "time_limit", SOLVER, perf_counter() - started)
        assignment = model.assignment(outcome.values) if outcome.values is not None else None
        if assignment is not None and not breaks(problem, rows, assignment):
            return _found(assignment, objective(assignment), bound, limits, perf_counter() - started)
    raise LlmpqError("HiGHS: every point it accepts breaks a limit by rounding; relax the tightest memory or budget by 0.0001 %")


def breaks(problem: Problem, rows: tuple[Row, ...], assignment: Assignment) -> tuple[str, ...]:
    """Everything the assignment breaks: memory without tolerance, budget, use of devices, rows."""
    return evaluate(problem, assignment).violations + tuple(row.label for row in rows if not row.holds(assignment))


def _nothing(cutoff: float | None, seconds: float) -> Solution:
    """HiGHS found nothing: with a cutoff that says only that nothing is better."""
    status: Status = "infeasible" if cutoff is None else "cutoff"
    return Solution(None, None, cutoff, True, status, SOLVER, seconds)


def _found(assignment: Assignment, objective: float, bound: float | None, limits: Limits, seconds: float) -> Solution:
    """HiGHS prunes above the cutoff, so its bound says nothing beyond it."""
    ceiling = objective if limits.cutoff is None else min(objective, limits.cutoff)
    bound = None if bound is None else min(bound, ceiling)
    proven = bound is not None and relative_gap(ceiling, bound) <= limits.gap * (1.0 + 1e-6) + 1e-9
    if proven and ceiling < objective:
        return Solution(None, None, bound, True, "cutoff", SOLVER, seconds)
    return Solution(assignment, objective, bound, proven, "optimal" if proven else "feasible", SOLVER, seconds)
