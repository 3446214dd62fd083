"""llmpq backends: the known backends."""

import click
from rich.table import Column, Table

from llmpq.commands.list_passes import import_doc
from llmpq.commands.output import output_options, print_json, stdout


@click.command("backends")
@output_options
def command(as_json: bool) -> None:
    """Known backends: what executes a compiled model, or tells what would happen."""
    from llmpq.backend import BACKENDS, PREDICTORS, load_backend, load_predictor

    rows = [{"name": name, "summary": import_doc(load_backend(name))} for name in BACKENDS]
    rows += [{"name": name, "summary": import_doc(load_predictor(name))} for name in PREDICTORS]
    if as_json:
        print_json(rows)
        return
    table = Table(Column("backend", no_wrap=True), "does")
    for row in rows:
        table.add_row(row["name"], row["summary"])
    stdout().print(table)
