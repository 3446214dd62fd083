"""llmpq validate: what a compiled model takes, beside what was predicted of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmpq.checkpoint.output_directory import require_output
from llmpq.commands.output import notice, output_options, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile
from llmpq.errors import InputError
from llmpq.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from llmpq.profiling.validation import Comparison, Validation


@click.command("validate")
@click.argument("compiled", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--profile", type=click.Path(path_type=Path, dir_okay=False), help="The profile that predictions rest on.")
@click.option("--quick", is_flag=True, help="Few tokens instead of the plan's gen_len.")
@click.option("--out", "-o", "out", type=OutputFile(), help="Write the profile, corrected.")
@output_options
def command(compiled: Path, profile: Path | None, quick: bool, out: Path | None, as_json: bool) -> None:
    """Run OUT on the batch that it was planned for, in this process, and compare memory, stages and the whole with the plan.

    Times are of this machine, whatever the cluster says of a device's speed; the speeds that would fit are told.
    """
    require_output(compiled)
    from llmpq.compiled import load
    from llmpq.profiling.profile_file import read_profile, write_profile
    from llmpq.profiling.validation import validate

    if out is not None and profile is None:
        raise InputError("-o writes a corrected profile, and none was given; add --profile FILE, or correct the cluster's speeds")
    found = None if profile is None else read_profile(profile)
    model = load(compiled)
    if found is None and model.plan.prediction.provenance.startswith("measured"):
        notice("the plan rests on a profile, these predictions do not: give it by --profile")
    with progress("running"):
        result = validate(model, found, quick)
    if as_json:
        print_json(result)
    else:
        _print(result)
    if out is not None and found is not None:
        write_profile(out, found.scaled(result.factor("prefill"), result.factor("decode")))
        notice(f"{out}: the profile with prefill and decode as measured here")


def _print(result: "Validation") -> None:
    from rich.table import Table

    workload = result.workload
    title = f"{result.model}: {workload.batch_size} sequences, {workload.prompt_len} + {workload.gen_len} tokens"
    table = Table(title=title)
    for name in ("what", "device", "predicted", "measured", "ratio", ""):
        table.add_column(name, justify="left" if name in ("what", "device", "") else "right", no_wrap=True)
    for row in result.rows:
        told = "" if row.is_within else "outside"
        table.add_row(row.what, row.device, _figure(row, row.predicted), _figure(row, row.measured), f"{row.ratio:.3f}", told)
    console = stdout()
    console.print(table)
    console.print(f"predicted       by: {result.provenance}")
    for device, given, fitting in result.speeds:
        console.print(f"speed           {device}: {given:.3g} in the cluster, {fitting:.3g} would fit this run")
    inside = len(result.rows) - len(result.outside)
    console.print(f"within bands    {inside} of {len(result.rows)}")


def _figure(row: "Comparison", value: float) -> str:
    return format_bytes(value) if row.unit == "bytes" else format_seconds(value)
