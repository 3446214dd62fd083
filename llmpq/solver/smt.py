"""SMT: unsat cores in the user's words, and independent optima of small problems, by z3."""

from time import perf_counter
from typing import Any

from llmpq.errors import TimeLimitError
from llmpq.solver.demands import Demand, demands, minimal_core
from llmpq.solver.problem import Assignment, Problem, Row, evaluate
from llmpq.solver.rules import Rule
from llmpq.solver.smt_model import Encoding, demand_constraints, encode, exact, objective_constraints
from llmpq.solver.solution import Solution

STEP = 1e-9  # relative: how much better the next plan of solve_small has to be


def unsat_core(
    problem: Problem, rows: tuple[Row, ...] = (), rules: tuple[Rule, ...] = (), time_limit_s: float = 5.0
) -> tuple[str, ...] | None:
    """Names of demands that cannot hold together, none of them superfluous; None when they can or the time is up.

    Cuts and counts per class and device, not a variable per layer, device and option: the study's finding for z3.
    """
    import z3

    deadline = perf_counter() + time_limit_s
    everything = demands(problem, rows, rules)
    encoding = encode(problem, rows)
    solver = z3.Solver()
    solver.add(*encoding.hard)
    literals = {demand: z3.Bool(f"demand {number}") for number, demand in enumerate(everything)}
    for demand, literal in literals.items():
        solver.add(z3.Implies(literal, z3.And(*demand_constraints(problem, encoding, demand))))

    def conflict(kept: tuple[Demand, ...]) -> bool | None:
        left = deadline - perf_counter()
        if left <= 0:
            return None
        solver.set("timeout", max(1, int(left * 1000)))
        answer = solver.check([literals[demand] for demand in kept])
        return None if answer == z3.unknown else bool(answer == z3.unsat)

    core = minimal_core(everything, conflict)
    return None if core is None else tuple(demand.name for demand in core)


def solve_small(problem: Problem, rows: tuple[Row, ...] = ()) -> Solution:
    """The optimum of a small problem (about six layers, three devices) in exact rationals: a second opinion for tests.

    Every plan found has to be beaten by the next, until z3 refutes that a better one exists. Sensitivities are compared
    with the budget at a billionth of it.
    """
    import z3

    started = perf_counter()
    encoding = encode(problem, rows, by_sensitivity=True)
    objective, auxiliary = objective_constraints(problem, encoding)
    solver = z3.Solver()
    solver.add(*encoding.hard, *auxiliary)
    for demand in demands(problem, rows):
        solver.add(*demand_constraints(problem, encoding, demand))
    best: Assignment | None = None
    while (answer := solver.check()) == z3.sat:
        best = _assignment(problem, encoding, solver.model())
        solver.add(objective < exact(evaluate(problem, best).objective * (1.0 - STEP)))
    if answer != z3.unsat:
        raise TimeLimitError("z3 gave up; solve_small is for problems of a few layers")
    seconds = perf_counter() - started
    if best is None:
        return Solution(None, None, None, True, "infeasible", "z3", seconds)
    value = evaluate(problem, best).objective
    return Solution(best, value, value * (1.0 - STEP), True, "optimal", "z3", seconds)


def _assignment(problem: Problem, encoding: Encoding, model: Any) -> Assignment:
    cuts = [model.eval(cut, model_completion=True).as_long() for cut in encoding.cut]
    device = [sum(cut <= layer for cut in cuts[1:]) for layer in range(problem.num_layers)]
    counts = {cell: model.eval(count, model_completion=True).as_long() for cell, count in encoding.counts.items()}
    assignment = encoding.classes.assignment(device, counts)
    assert assignment is not None, "the counts of a model of z3 add up"
    return assignment
