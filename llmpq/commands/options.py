"""Options that `compile` and `plan` share, and what they become."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import click

from llmpq.errors import InputError
from llmpq.options import PlanningOptions
from llmpq.passmanager import PASSES, Observer, Pass
from llmpq.printing import format_program
from llmpq.program import Program
from llmpq.suggest import did_you_mean
from llmpq.workload import Batch

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--cluster", "-c", "cluster", required=True, metavar="C", help='A cluster file, or "3xT4,1xV100-32", or "local".'
    ),
    click.option("--batch-size", type=int, default=32, show_default=True, help="Sequences generated together."),
    click.option("--prompt-len", type=int, default=512, show_default=True, help="Tokens of a prompt."),
    click.option("--gen-len", type=int, default=100, show_default=True, help="Tokens generated for each."),
    click.option("--max-ppl-increase", type=float, help="Quality target: 0.02 allows 2 % more perplexity (the default)."),
    click.option("--sensitivity-budget", type=float, help="Quality target in nats per token."),
    click.option("--theta", type=float, help="Instead of a target: seconds per nat per token in the objective."),
    click.option("--precisions", default="16,w8a8,w8a16,w4a16", show_default=True, help="What layers may be kept at."),
    click.option("--engine", default="local", show_default=True, help="What will run the plan."),
    click.option("--constraint", "constraints", multiple=True, metavar="RULE", help='For instance "layers[0:2].bits >= 8".'),
    click.option("--calibration", type=click.Path(dir_okay=False), help="A text for the indicator; a bundled one by default."),
    click.option("--indicator", default="auto", show_default=True, help="Sensitivity: variance, prior or auto."),
    click.option("--sensitivity", type=click.Path(), help="A sensitivity table to use instead of an indicator."),
    click.option("--assign", default="assign-joint", show_default=True, help="The assignment pass: assign-joint or a baseline."),
    click.option("--gap", type=float, default=1e-3, show_default=True, help="Relative optimality gap at which the search stops."),
    click.option("--time-limit", type=float, default=60.0, show_default=True, help="Seconds of search."),
    click.option("--print-after", multiple=True, metavar="PASS", help="Print the program after this pass (or `all`) on stderr."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def planning_options(function: F) -> F:
    """Add every option of planning to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Planning:
    """The values of the shared options, as the compiler takes them."""

    cluster: str
    workload: Batch
    options: PlanningOptions
    observer: Observer

    @staticmethod
    def of(values: dict[str, Any]) -> "Planning":
        options = {name: value for name, value in values.items() if name in PlanningOptions.__annotations__}
        return Planning(
            cluster=values["cluster"],
            workload=Batch(values["batch_size"], values["prompt_len"], values["gen_len"]),
            options=cast(PlanningOptions, {**options, "time_limit_s": values["time_limit"]}),
            observer=printer(values["print_after"]),
        )


def printer(names: tuple[str, ...]) -> Observer:
    """An observer that prints the program on stderr after the passes named (`all`: after each)."""
    for name in names:
        if name != "all" and name not in PASSES:
            raise InputError(f"--print-after {name!r}: no such pass; `llmpq passes` lists them{did_you_mean(name, PASSES)}")

    def observe(done: Pass, program: Program) -> None:
        if done.name in names or "all" in names:
            click.echo(f"== after {done.name}\n{format_program(program)}", err=True)

    return observe
