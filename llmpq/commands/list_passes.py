"""llmpq passes: the known passes."""

import click
from rich.table import Column, Table

from llmpq.commands.output import output_options, print_json, stdout
from llmpq.passmanager import PASSES, load_pass


@click.command("passes")
@output_options
def command(as_json: bool) -> None:
    """Known passes: what each requires and provides."""
    rows = []
    for name in PASSES:
        cls = load_pass(name)
        summary = (import_doc(cls).partition(": ")[2] or import_doc(cls)).rstrip(".")
        rows.append({"name": name, "requires": list(cls.requires), "provides": list(cls.provides), "summary": summary})
    if as_json:
        print_json(rows)
        return
    table = Table(Column("pass", no_wrap=True), "requires", "provides", "does")
    for row in rows:
        table.add_row(str(row["name"]), ", ".join(row["requires"]), ", ".join(row["provides"]), str(row["summary"]))
    stdout().print(table)


def import_doc(cls: type[object]) -> str:
    """The first line of the docstring of the module that defines `cls`."""
    from importlib import import_module

    return (import_module(cls.__module__).__doc__ or "").strip().split("\n")[0]
