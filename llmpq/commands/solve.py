"""llmpq solve: the bare assignment problem, its answer as JSON."""

import json
from pathlib import Path
from typing import Any

import click

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.solver.problem import Problem, evaluate, load_problem
from llmpq.solver.solution import DEFAULT_GAP, Solution


@click.command("solve")
@click.argument("problem_file", metavar="PROBLEM.json", type=click.Path(path_type=Path))
@click.option("--gap", type=click.FloatRange(min=0.0), default=DEFAULT_GAP, show_default=True, help="Relative gap to prove.")
@click.option("--time-limit", type=click.FloatRange(min=0.0, min_open=True), metavar="S", help="Seconds; the default is none.")
def command(problem_file: Path, gap: float, time_limit: float | None) -> None:
    """Solve a bare assignment problem (llmpq-problem-2) and print the result as JSON."""
    from llmpq.solver.solve import solve

    problem = load_problem(problem_file)
    solution = solve(problem, gap=gap, time_limit_s=time_limit)
    reasons = _reasons(problem) if solution.status == "infeasible" else ()
    click.echo(json.dumps(result(problem, solution, reasons)))
    if solution.status == "infeasible":
        raise InfeasibleError(reasons)
    if solution.assignment is None:
        raise TimeLimitError(f"no assignment was found within {time_limit:g} s; give more with --time-limit")


def _reasons(problem: Problem) -> tuple[str, ...]:
    from llmpq.solver.explain import explain_infeasible

    return explain_infeasible(problem)


def result(problem: Problem, solution: Solution, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    """The result object of DESIGN.md: one device and one option name per layer; `reasons` when nothing fits."""
    assignment = solution.assignment
    evaluation = None if assignment is None else evaluate(problem, assignment)
    found: dict[str, Any] = {
        "objective": solution.objective,
        "latency_s": None if evaluation is None else evaluation.latency_s,
        "bound": solution.bound,
        "gap": solution.gap,
        "proven": solution.proven,
        "device": None if assignment is None else [problem.devices[device] for device in assignment.device],
        "option": None if assignment is None else [problem.options[option] for option in assignment.option],
        "seconds": solution.seconds,
        "solver": solution.solver,
    }
    return found | ({"reasons": list(reasons)} if solution.status == "infeasible" else {})
