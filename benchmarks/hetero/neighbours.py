"""Neighbours of a plan: what a person would try next, all within memory and quality budget."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, permutations

from llmpq.costs.table import micro_batch_sizes
from llmpq.plan import Optimality, Plan
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.make_plan import make_plan
from llmpq.planning.option_sets import option_sets
from llmpq.planning.robust import choice_of
from llmpq.program import Program
from llmpq.solver.problem import Assignment, Problem, Row, evaluate
from llmpq.solver.solve import solve

KINDS = ("boundary", "micro-batch", "order", "precision")
SHIFTS = (-1, 1, -2, 2, -3, 3)  # layers that move over a boundary
GAP = 1e-3


@dataclass(frozen=True, slots=True)
class Place:
    """A plan as the planner sees it: a candidate, and an assignment of its problem."""

    candidate: Candidate
    assignment: Assignment

    @property
    def key(self) -> tuple[object, ...]:
        """What runs, whatever else the candidate could have chosen."""
        candidate = self.candidate
        return candidate.order, candidate.prefill_micro_batch, candidate.decode_micro_batch, self.assignment


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`kind`: what differs from the plan."""

    kind: str
    plan: Plan


def neighbours(program: Program, plan: Plan, count: int) -> list[Neighbour]:
    """`count` plans, as many of each kind as there are, in turn; those of a kind from the fastest predicted.

    When the plan has fewer, also the neighbours of its neighbours.
    """
    budget = plan.quality.budget
    start = place_of(program, plan)
    seen, found, queue = {start.key}, dict[str, list[tuple[float, Place]]]((kind, []) for kind in KINDS), [start]
    while queue and sum(map(len, found.values())) < count:
        for kind, place in _around(program, queue.pop(0), budget):
            objective = _objective(program, place, budget)
            if place.key not in seen and objective is not None:
                seen.add(place.key)
                found[kind].append((objective, place))
                queue.append(place)
    rows = [sorted(places, key=lambda item: item[0]) for places in found.values()]
    turns = sorted((index, kind) for kind, row in zip(KINDS, rows) for index in range(len(row)))
    chosen = [(kind, rows[KINDS.index(kind)][index][1]) for index, kind in turns[:count]]
    return [Neighbour(kind, _plan(program, place, budget)) for kind, place in chosen]


def place_of(program: Program, plan: Plan) -> Place:
    """The candidate and the assignment that a plan came from."""
    return Place(*choice_of(program, plan))


def _around(program: Program, place: Place, budget: float | None) -> Iterator[tuple[str, Place]]:
    candidate, assignment = place.candidate, place.assignment
    problem = build_problem(program, candidate, budget)
    for moved in _shifted(assignment):
        yield "boundary", replace(place, assignment=_repaired(problem, moved))
    for sizes in micro_batch_sizes(program.request.workload, len(program.request.cluster.devices)):  # type: ignore[arg-type]
        for options in option_sets(program, *sizes):
            other = Candidate(candidate.order, *sizes, options=options)
            yield from _solved("micro-batch", program, other, budget)
    everything = tuple(range(len(program.request.cluster.devices)))
    for size in range(1, len(everything) + 1):
        for order in permutations(everything, size):
            if order != candidate.order:
                yield from _solved("order", program, replace(candidate, order=order), budget)
    for layer, now in enumerate(assignment.option):
        for option in range(len(problem.options)):
            if option != now:
                changed = (*assignment.option[:layer], option, *assignment.option[layer + 1 :])
                yield "precision", replace(place, assignment=replace(assignment, option=changed))
        for other in range(layer):
            if assignment.option[other] != now and assignment.device[other] != assignment.device[layer]:
                options = list(assignment.option)
                options[layer], options[other] = options[other], options[layer]
                yield "precision", replace(place, assignment=replace(assignment, option=tuple(options)))


def _shifted(assignment: Assignment) -> Iterator[Assignment]:
    """Every boundary moved by some layers, which keep their options; no stage is left empty."""
    lengths = [len(list(run)) for _, run in groupby(assignment.device)]
    for boundary in range(len(lengths) - 1):
        for shift in SHIFTS:
            moved = list(lengths)
            moved[boundary] += shift
            moved[boundary + 1] -= shift
            if min(moved) > 0:
                yield replace(assignment, device=tuple(j for j, length in enumerate(moved) for _ in range(length)))


def _repaired(problem: Problem, assignment: Assignment) -> Assignment:
    """Where they do not fit, the best options for the layers that stay where they are."""
    if not evaluate(problem, assignment).violations:
        return assignment
    options = range(len(problem.options))
    rows = tuple(
        Row(f"layer {layer}", tuple((layer, device, option, 1.0) for option in options), "==", 1.0)
        for layer, device in enumerate(assignment.device)
    )
    return solve(problem, gap=GAP, time_limit_s=5.0, rows=rows).assignment or assignment


def _solved(kind: str, program: Program, candidate: Candidate, budget: float | None) -> Iterator[tuple[str, Place]]:
    """The best partition and precisions of another candidate, where all its devices are used."""
    solution = solve(build_problem(program, candidate, budget), gap=GAP, time_limit_s=5.0)
    if solution.assignment is not None and len(set(solution.assignment.device)) == len(candidate.order):
        yield kind, Place(candidate, solution.assignment)


def _objective(program: Program, place: Place, budget: float | None) -> float | None:
    """Predicted seconds; None where memory or budget is broken."""
    evaluation = evaluate(build_problem(program, place.candidate, budget), place.assignment)
    return None if evaluation.violations else evaluation.latency_s


def _plan(program: Program, place: Place, budget: float | None) -> Plan:
    problem = build_problem(program, place.candidate, budget)
    objective = evaluate(problem, place.assignment).objective
    optimality = Optimality(objective, None, False, "neighbour")
    return make_plan(program, place.candidate, problem, place.assignment, optimality, budget)
