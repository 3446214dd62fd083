"""The outer search: candidates in the order of their bounds, the joint problem solved for those that can still win."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.planning.candidates import Candidate, build_problem, candidates, rule_context
from llmpq.program import Program
from llmpq.solver.explain import explain_infeasible
from llmpq.solver.milp import least_sensitivity, relaxation_bound, shortage, solve
from llmpq.solver.problem import Assignment, Problem, Row
from llmpq.solver.rules import rule_rows

BUDGET_SLACK = 1e-3  # relative room above the least sensitivity, so that speed can still choose among equals


@dataclass(frozen=True, slots=True)
class Found:
    """The best assignment, its candidate and problem, and a bound that holds for every candidate searched."""

    candidate: Candidate
    problem: Problem
    assignment: Assignment
    objective: float
    bound: float
    proven: bool


def rows_of(program: Program, candidate: Candidate) -> tuple[Row, ...]:
    """The user's rules as linear rows over this candidate."""
    return rule_rows(program.request.rules, rule_context(program, candidate))


def search(
    program: Program,
    budget: float | None,
    *,
    accept: Callable[[Candidate], bool] = lambda _: True,
    restrict: Callable[[Problem], Problem] = lambda problem: problem,
) -> Found | None:
    """The best plan over all accepted candidates, None when none of them is feasible.

    Candidates are bounded by their linear relaxation and solved in that order until no bound is below the incumbent.
    Raises TimeLimitError when the time is up before any plan was found.
    """
    deadline = time.monotonic() + program.request.time_limit_s
    queue: list[tuple[float, int, Candidate, Problem]] = []
    unbounded = False
    for number, candidate in enumerate(filter(accept, candidates(program))):
        problem = restrict(build_problem(program, candidate, budget))
        if time.monotonic() > deadline - program.request.time_limit_s / 2 and queue:
            unbounded = True
            break
        bound = relaxation_bound(problem, rows_of(program, candidate))
        if bound is not None:
            queue.append((bound, number, candidate, problem))
    if not queue:
        return None
    return _solve_in_order(program, sorted(queue), deadline, exhaustive=not unbounded)


def _solve_in_order(
    program: Program, queue: list[tuple[float, int, Candidate, Problem]], deadline: float, exhaustive: bool
) -> Found | None:
    best: Found | None = None
    bounds: list[float] = []
    timed_out = False
    gap = program.request.gap
    for bound, _, candidate, problem in queue:
        if best is not None and bound >= best.objective * (1 - gap):
            bounds.append(bound)
            break
        left = deadline - time.monotonic()
        if left <= 0:
            timed_out = True
            bounds.append(bound)
            break
        cutoff = None if best is None else best.objective
        solution = solve(problem, gap=gap, time_limit_s=left, rows=rows_of(program, candidate), cutoff=cutoff)
        timed_out |= solution.status == "time_limit"
        if solution.status != "infeasible":
            bounds.append(max(bound, solution.bound) if solution.bound is not None else bound)
        if (
            solution.assignment is not None
            and solution.objective is not None
            and (best is None or solution.objective < best.objective)
        ):
            best = Found(candidate, problem, solution.assignment, solution.objective, 0.0, False)
    if best is None:
        if timed_out:
            raise TimeLimitError(f"no plan was found within {program.request.time_limit_s:g} s; give more time with --time-limit")
        return None
    lowest = min([*bounds, best.objective])
    return replace(best, bound=lowest, proven=exhaustive and (best.objective - lowest) <= gap * best.objective)


def search_or_explain(program: Program) -> tuple[Found, float | None, tuple[str, ...]]:
    """The best plan, the budget that it kept, and notices.

    When the default budget cannot be met, the plan of least sensitivity that fits, with a notice; an explicit one that
    cannot be met, or a cluster that is too small, raises InfeasibleError with the reasons.
    """
    budget = program.request.target.budget
    found = search(program, budget)
    if found is not None:
        return found, budget, ()
    smallest = _smallest_candidates(program)
    if budget is not None and not program.request.target.explicit:
        least = [least_sensitivity(build_problem(program, c, None), rows_of(program, c)) for c in smallest]
        values = [solution.objective for solution in least if solution.objective is not None]
        if values:
            relaxed = min(values) * (1 + BUDGET_SLACK)
            found = search(program, relaxed)
            if found is not None:
                notice = (
                    f"the default quality target of {budget:.4f} nats per token cannot be met on this cluster; "
                    f"this is the plan of least sensitivity that fits, {min(values):.4f}"
                )
                return found, relaxed, (notice,)
    raise InfeasibleError(_reasons(program, smallest))


def _smallest_candidates(program: Program) -> tuple[Candidate, ...]:
    """For each order, the candidate whose activations need the least memory."""
    smallest: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates(program):
        held = smallest.get(candidate.order)
        if held is None or (candidate.decode_micro_batch, candidate.prefill_micro_batch) < (
            held.decode_micro_batch,
            held.prefill_micro_batch,
        ):
            smallest[candidate.order] = candidate
    return tuple(smallest.values())


def _reasons(program: Program, smallest: tuple[Candidate, ...]) -> tuple[str, ...]:
    """Why nothing fits, told for the order that is short of the least."""

    def short(candidate: Candidate) -> int:
        return sum(missing for _, missing in shortage(build_problem(program, candidate, None), rows_of(program, candidate)))

    nearest = min(smallest, key=lambda candidate: (short(candidate), -len(candidate.order)))
    problem = build_problem(program, nearest, program.request.target.budget)
    return explain_infeasible(problem, rows_of(program, nearest), program.request.rules)
