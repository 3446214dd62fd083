"""llmpq solve: the bare assignment problem, its answer as JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llmpq.commands.output import progress, quiet_option
from llmpq.commands.output_file import OutputFile
from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.solver.problem import Problem, evaluate, load_problem
from llmpq.solver.solution import DEFAULT_GAP, Solution

CLOSER = 0.25  # of the gap: how close to the optimum a plan is found whose certificate proves the gap


@click.command("solve")
@click.argument("problem_file", metavar="PROBLEM.json", type=click.Path(path_type=Path))
@click.option("--gap", type=click.FloatRange(min=0.0), default=DEFAULT_GAP, show_default=True, help="Relative gap to prove.")
@click.option("--time-limit", type=click.FloatRange(min=0.0, min_open=True), metavar="S", help="Seconds; the default is none.")
@click.option("--certificate", type=OutputFile(), metavar="FILE", help="Write what proves the bound (docs/certificate.md).")
@click.option(
    "--check", "checked", type=click.Path(path_type=Path), metavar="FILE", help="Check a certificate instead of solving."
)
@quiet_option
def command(problem_file: Path, gap: float, time_limit: float | None, certificate: Path | None, checked: Path | None) -> None:
    """Solve a bare assignment problem (llmpq-problem-2) and print the result as JSON."""
    from llmpq.solver.solve import solve

    problem = load_problem(problem_file)
    if checked is not None and certificate is not None:
        raise click.UsageError("--certificate writes a file and --check reads one; give one of them")
    if checked is not None:
        click.echo(_proof(problem, checked))
        return
    with progress("solving"):
        solution = solve(problem, gap=gap if certificate is None else gap * CLOSER, time_limit_s=time_limit)
    if certificate is not None:
        solution = replace(solution, proven=solution.proven or (solution.gap is not None and solution.gap <= gap))
    reasons = _reasons(problem) if solution.status == "infeasible" else ()
    click.echo(json.dumps(result(problem, solution, reasons)))
    if solution.status == "infeasible":
        raise InfeasibleError(reasons)
    if solution.assignment is None:
        raise TimeLimitError(f"no assignment was found within {time_limit:g} s; give more with --time-limit")
    if certificate is not None:
        click.echo(_certify(problem, solution, gap, certificate), err=True)


def _proof(problem: Problem, path: Path) -> str:
    from llmpq.solver.certificate.check import check_certificate
    from llmpq.solver.certificate.value import load_certificate

    return check_certificate(problem, load_certificate(path)).text


def _certify(problem: Problem, solution: Solution, gap: float, path: Path) -> str:
    """Writes the certificate; says what it proves."""
    from llmpq.solver.certificate.build import certify

    assert solution.assignment is not None
    found = certify(problem, solution.assignment, gap if solution.proven else None)
    path.write_text(found.dumps(), encoding="utf-8")
    return f"{path}: {found.kind}, within {found.gap:.3g} of the optimum; `llmpq solve PROBLEM.json --check {path}` checks it"


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
