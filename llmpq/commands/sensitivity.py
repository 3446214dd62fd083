"""llmpq sensitivity: what rounding each layer costs, by an indicator, and how far indicators agree."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands import completions
from llmpq.commands.output import notice, output_options, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile

if TYPE_CHECKING:
    from llmpq.quantization.agreement import Agreement
    from llmpq.quantization.scoring import Measurements


@click.command("sensitivity")
@click.argument("model", shell_complete=completions.models)
@click.option("--indicator", default="fisher", show_default=True, help="fisher, variance, hessian, measured, random or prior.")
@click.option("--precisions", default="16,w8a8,w8a16,w4a16", show_default=True, help="What layers may be kept at.")
@click.option("--granularity", default="layer", show_default=True, help="layer, or part: attention and mlp by themselves.")
@click.option("--text", "--calibration", "text", help="A text, .jsonl file or dataset:NAME; a bundled text by default.")
@click.option("--out", "-o", "out", type=OutputFile(), help="Write the table, for --sensitivity.")
@click.option("--compare", is_flag=True, help="All indicators beside each other: rank correlation, additivity, seconds.")
@output_options
def command(
    model: str,
    indicator: str,
    precisions: str,
    granularity: str,
    text: str | None,
    out: Path | None,
    compare: bool,
    as_json: bool,
) -> None:
    """The expected increase of the loss of MODEL, nats per token, for each layer and precision.

    What was measured once on the same model and text is kept, also when this is interrupted, and not measured again.
    """
    from llmpq.layer_option import parse_options
    from llmpq.measuring import check_indicator, measurements, sensitivity_of
    from llmpq.precision import parse_precisions
    from llmpq.printing import format_sensitivity
    from llmpq.serialize import dumps

    check_indicator(indicator)
    chosen = parse_options(precisions, granularity)
    if compare:
        _compare(measurements(model, text, notice), parse_precisions(precisions), as_json)
        return
    with progress() as advance:
        table = sensitivity_of(model, indicator, chosen, text, notice, advance)
    if out is not None:
        out.write_text(dumps(table), encoding="utf-8")
    if as_json:
        print_json(table)
    else:
        stdout().print(format_sensitivity(table))


def _compare(measured: "Measurements", precisions: Any, as_json: bool) -> None:
    from llmpq.quantization.agreement import compare

    with progress() as advance:
        found = compare(measured, precisions, advance)
    if as_json:
        print_json(found)
        return
    stdout().print(_table(found))
    mixtures = len(found.mixed_joint)
    stdout().print("rank: Spearman's correlation with `measured`; off: typical factor between an indicator and `measured`")
    stdout().print(f"mixed: typical factor between the predicted sum and the joint divergence of {mixtures} seeded mixtures")
    stdout().print("alone / joint: the sum of the layers measured one at a time, over the divergence with all of them")


def _table(found: "Agreement") -> Any:
    from rich.table import Table

    table = Table(title=f"indicators on {found.text}, {found.tokens} tokens")
    for column in ("indicator", "precision", "rank", "off", "mixed", "seconds"):
        table.add_column(column, justify="left" if column in ("indicator", "precision") else "right", no_wrap=True)
    for row in found.rows:
        table.add_row(
            row.indicator,
            row.precision,
            f"{row.rank:.2f}",
            f"x{row.off:.2f}",
            f"x{row.mixed:.2f}",
            f"{row.seconds:.1f}",
        )
    for precision, ratio in zip(found.precisions, found.additivity):
        table.add_row("alone / joint", precision, f"{ratio:.2f}")
    return table
