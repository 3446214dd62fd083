"""llmpq profile: what layers of a model take on this machine, measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.commands import completions
from llmpq.commands.output import notice, output_options, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile
from llmpq.units import format_bandwidth, format_seconds

if TYPE_CHECKING:
    from llmpq.costs.profile import Profile


@click.command("profile")
@click.argument("model", shell_complete=completions.models)
@click.option("--precisions", default="16,w8a8,w8a16,w4a16", show_default=True, help="What layers are measured at.")
@click.option("--quick", is_flag=True, help="A coarse grid, under a minute.")
@click.option(
    "--engine", type=click.Choice(("local", "vllm")), default="local", show_default=True, help="Where layers are measured."
)
@click.option("--python", metavar="PATH", help="The interpreter that has vLLM; by default the one of `make engines`.")
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda:N (not yet run on a GPU).")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Of this device.")
@click.option("--link/--no-link", default=True, help="Also measure messages between two processes of this machine.")
@click.option("--beside", is_flag=True, help="Also while another process computes, as stages of one host do; as long again.")
@click.option("--out", "-o", "out", type=OutputFile(), help="The file; profile.json by default.")
@output_options
def command(
    model: str,
    precisions: str,
    quick: bool,
    engine: str,
    python: str | None,
    device: str,
    speed: float,
    link: bool,
    beside: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure on this machine what one layer of each kind of MODEL takes, for every precision and many sizes of a pass.

    Weights are random. A file that is there already is gone on with: what it holds is not measured again. Costs of devices
    of this type then come from it: llmpq plan MODEL --profile FILE. A cluster's speed is relative to --speed.

    With --engine vllm the steps are vLLM's own, prompts and decoding mixed: for llmpq plan MODEL --engine vllm --profile FILE.
    """
    from llmpq.profiling.taking import take_profile

    path = out or Path("profile.json")
    where: dict[str, Any] = {"engine": engine, "python": python, "device": device, "beside": beside}
    with progress("tracing") as advance:
        taken = take_profile(model, path, precisions, quick=quick, speed=speed, link=link, progress=advance, **where)
    profile = taken.profile
    if taken.lacking:
        notice(f"{taken.lacking} sizes are not measured: the time was up, or the device lacks a precision; run it again")
    if as_json:
        print_json(profile)
    else:
        _print(profile, path)


def _print(profile: "Profile", path: Path) -> None:
    """Seconds of one layer of the first kind, a row per size, a column per precision."""
    from rich.table import Table

    precisions = tuple(dict.fromkeys(point.precision for point in profile.points))
    what = f"{profile.model} on {profile.machine.processor}, {profile.machine.threads} threads: one layer"
    table = Table(title=f"{what} of the first kind" if len(profile.kinds) > 1 else what)
    for name in ("phase", "sequences", "context", *precisions, "ends"):
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    rows: dict[tuple[bool, int, int], dict[str, Any]] = {}
    for point in (point for point in profile.points if not point.is_mixed):
        rows.setdefault((point.is_decode, point.rows, point.context), {})[point.precision] = point
    for (decode, sequences, context), points in sorted(rows.items()):
        cells = [_cell(points[name].layers[0]) if name in points else "" for name in precisions]
        first = next(iter(points.values()))
        ends = format_seconds(first.first.median_s + first.last.median_s + (first.rank.median_s if first.rank else 0.0))
        table.add_row("decode" if decode else "prefill", str(sequences), str(context), *cells, ends)
    console, (low, high) = stdout(), profile.band
    console.print(table)
    if profile.link is not None:
        told = f"{format_bandwidth(profile.link.bandwidth_bytes_per_s)}, {format_seconds(profile.link.latency_s)}"
        console.print(f"link            {told} between two processes")
    if profile.message_cpu_s:
        console.print(f"message         {format_seconds(profile.message_cpu_s)} of a stage's processor, beside computing")
    console.print(f"band            {low:.0%} to {high:.0%} of a predicted time, by spread and interpolation")
    engine = "" if profile.engine == "local" else f"--engine {profile.engine} "
    console.print(f"written         {path}; next: llmpq plan {profile.model} --cluster C {engine}--profile {path} ...")


def _cell(timing: Any) -> str:
    return "" if timing is None else format_seconds(timing.median_s)
