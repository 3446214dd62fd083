"""What max-context and max-batch share: the question, its table, its JSON."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

from llmpq.commands.options import Planning
from llmpq.commands.output import notice, print_json, progress, stdout
from llmpq.planning.limits import Limit
from llmpq.program import Program
from llmpq.serialize import to_json


def answer(model: str, values: dict[str, Any], ask: Callable[[Program], tuple[Limit, ...]], what: str, fixed: str) -> None:
    """Ask about the program of these options and print the limits.

    fixed: what was not varied, in terms of the workload's fields.
    """
    from llmpq.compiler import prepare

    planning = Planning.of(values)
    with progress("asking"):
        program = prepare(model, planning.cluster, planning.workload, observe=planning.observer, **planning.options)
        limits = ask(program)
    for text in program.request.cluster.notices + program.notices:
        notice(text)
    if values["as_json"]:
        print_json({"what": what, "limits": limits})
    else:
        stdout().print(limits_table(limits, f"{program.graph.model}: {what}, {_filled(fixed, program)}", what))


def _filled(fixed: str, program: Program) -> str:
    return fixed.format(**to_json(program.request.workload))


def limits_table(limits: tuple[Limit, ...], title: str, what: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("precisions")
    table.add_column("quality")
    table.add_column(what, justify="right", no_wrap=True)
    table.add_column("one more is too many:")
    for limit in limits:
        loss = () if limit.sensitivity is None else (f"+{limit.sensitivity:.4f}",)
        held = (("at least",) if loss else ()) if limit.budget is None else (f"within {limit.budget:.4f}",)
        found = "none" if limit.largest is None else str(limit.largest)
        table.add_row(", ".join(limit.precisions), " ".join((*loss, *held)), found, "; ".join(limit.limited_by))
    return table
