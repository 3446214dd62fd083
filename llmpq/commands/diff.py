"""llmpq diff: two plans side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from llmpq.commands.output import output_options, print_json, stdout
from llmpq.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from llmpq.answers.difference import DeviceChange, Difference, Figure, Placed


@click.command("diff")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@output_options
def command(first: Path, second: Path, as_json: bool) -> None:
    """What changes from plan A to plan B; each is a compiled model, or a file of `llmpq plan --json`."""
    from llmpq.answers.difference import difference
    from llmpq.answers.plan_file import load_plan

    found = difference(load_plan(first), load_plan(second))
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: "Difference") -> None:
    console = stdout()
    if found.is_empty:
        console.print("the plans are the same")
        return
    table = _table("", "A", "B", "B / A")
    for figure in found.figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}"
        table.add_row(figure.name, _number(figure, figure.first), _number(figure, figure.second), ratio)
    console.print(table)
    for setting in found.settings:
        console.print(f"{setting.name}\n  A: {setting.first}\n  B: {setting.second}")
    console.print(_devices(found.devices))
    if not found.layers:
        console.print("every layer is on the same device at the same precision")
        return
    layers = _table("layers", "A", "B")
    for change in found.layers:
        span = str(change.start) if change.start == change.stop else f"{change.start}-{change.stop}"
        layers.add_row(span, _placed(change.first), _placed(change.second))
    console.print(layers)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _number(figure: "Figure", value: float | None) -> str:
    if value is None:
        return "-"
    if figure.unit == "bytes":
        return format_bytes(value)
    return format_seconds(value) if figure.unit == "s" else f"{value:.4g}"


def _devices(changes: "tuple[DeviceChange, ...]") -> Table:
    table = _table("device", "layers A", "layers B", "memory A", "memory B")
    for change in changes:
        spans = ["idle" if span is None else f"{span[0]}-{span[1]}" for span in (change.first_layers, change.second_layers)]
        table.add_row(change.device, *spans, format_bytes(change.first_bytes), format_bytes(change.second_bytes))
    return table


def _placed(placed: "Placed") -> str:
    return "-" if placed is None else f"{placed[1]} on {placed[0]}"
