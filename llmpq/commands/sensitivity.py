"""llmpq sensitivity: what rounding each layer costs, by an indicator, and how far indicators agree."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands import completions
from llmpq.commands.output import notice, output_options, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile
from llmpq.errors import InputError

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
    from llmpq.frontend.cached_graphs import layer_graph_of
    from llmpq.frontend.models import resolve
    from llmpq.layer_option import parse_options
    from llmpq.passes.estimate_sensitivity import INDICATORS
    from llmpq.precision import parse_precisions
    from llmpq.printing import format_sensitivity
    from llmpq.sensitivity import prior
    from llmpq.serialize import dumps
    from llmpq.suggest import did_you_mean

    known = tuple(name for name in INDICATORS if name != "auto")
    if indicator not in known:
        raise InputError(f"indicator {indicator!r} is unknown; known are {', '.join(known)}{did_you_mean(indicator, known)}")
    chosen = parse_options(precisions, granularity)
    if compare:
        _compare(_measurements(model, text), parse_precisions(precisions), as_json)
        return
    if indicator == "prior":
        table = prior(layer_graph_of(resolve(model, weights=False)), chosen)
    else:
        from llmpq.quantization.indicators import table_of

        measured = _measurements(model, text)
        with progress() as advance:
            table = table_of(indicator, measured, chosen, advance)
    if out is not None:
        out.write_text(dumps(table), encoding="utf-8")
    if as_json:
        print_json(table)
    else:
        stdout().print(format_sensitivity(table))


def _measurements(model: str, text: str | None) -> "Measurements":
    """Of a model with weights that fits in this machine's memory; else InputError."""
    from llmpq.checkpoint.reader import Checkpoint
    from llmpq.frontend.cached_graphs import layer_graph_of
    from llmpq.frontend.models import resolve
    from llmpq.frontend.texts import CALIBRATE, bundled_text_notice, read_tokens
    from llmpq.program import Calibration
    from llmpq.quantization.room import no_room_for
    from llmpq.quantization.scoring import Measurements

    source = resolve(model, weights=True)
    if source.directory is None:
        raise InputError(f"model {model!r} is a configuration without weights; give a directory or hub id, or --indicator prior")
    reason = no_room_for(Checkpoint.open(source.directory))
    if reason is not None:
        raise InputError(f"model {model!r} cannot be measured: {reason}; use --indicator prior, or a machine with more")
    said = None if text is not None else bundled_text_notice("sensitivity is measured", source.name, "--text")
    if said is not None:
        notice(said)
    ids, name = read_tokens(source.directory, text or CALIBRATE)
    if len(ids) < 2:
        raise InputError(f"calibration text {name} has {len(ids)} tokens; at least 2 are needed, some thousands are better")
    return Measurements.of(layer_graph_of(source), Calibration(source.directory, ids, name))


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
