"""llmpq pareto: the plans of which none is both faster and better."""

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from llmpq.commands import completions
from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import notice, print_json, progress, stdout
from llmpq.units import format_bytes

if TYPE_CHECKING:
    from llmpq.answers.pareto import ParetoPoint


@click.command("pareto")
@click.argument("model", shell_complete=completions.models)
@planning_options
@click.option("--points", type=click.IntRange(min=1), default=12, show_default=True, help="Plans at most.")
@click.option("--search-limit", type=float, default=5.0, show_default=True, help="Seconds of each search.")
def command(model: str, points: int, search_limit: float, **values: Any) -> None:
    """Quality against speed: the fastest plan of MODEL at each loss, from the least loss to the fastest of all.

    Costs are derived once; every plan is then found by the exact search. The quality target of the options is not used.
    """
    from llmpq.answers.pareto import pareto
    from llmpq.compiler import prepare

    planning = Planning.of(values)
    with progress("planning") as report:
        program = prepare(model, planning.cluster, planning.workload, observe=planning.observer, **planning.options)
        found = pareto(program, points, search_limit, report)
    for text in program.request.cluster.notices + program.notices:
        notice(text)
    if values["as_json"]:
        print_json(found)
    else:
        stdout().print(front_table(found, f"{program.graph.model} on {program.request.cluster.name}"))


def front_table(found: "tuple[ParetoPoint, ...]", title: str) -> Table:
    """A row per plan: loss, perplexity, speed, memory, and how many layers have each option."""
    from math import expm1

    table = Table(title=title, title_justify="left")
    for column in ("nats", "perplexity", "tokens/s", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("layers at each precision")
    for point in found:
        options = point.plan.options
        counts = ", ".join(f"{options.count(name)} {name}" for name in dict.fromkeys(sorted(options)))
        speed = f"{point.tokens_per_s:.4g}{'' if point.proven else '?'}"
        memory = format_bytes(point.memory_bytes)
        table.add_row(f"{point.sensitivity:.4f}", f"+{expm1(point.sensitivity):.2%}", speed, memory, counts)
    return table
