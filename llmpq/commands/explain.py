"""llmpq explain: why a plan, a device or a layer of it is as it is, and what would make it faster."""

from pathlib import Path

import click

from llmpq.commands.output import notice, output_options, print_json, progress, stdout


@click.command("explain")
@click.argument("plan", metavar="OUT|PLAN.json", type=click.Path(path_type=Path))
@click.option("--layer", type=click.IntRange(min=0), metavar="N", help="One layer: its alternatives, and the next-best plan.")
@click.option("--device", metavar="NAME", help="One device, used or idle: its stage, its prices.")
@click.option("--model", help="The model, where the plan's name for it is not a bundled one, a directory or a hub id.")
@click.option("--sensitivity", type=click.Path(path_type=Path), help="The table the plan was made with; else stored, or prior.")
@click.option("--profile", type=click.Path(path_type=Path), help="The file of `llmpq profile` that the plan was made with.")
@click.option("--time-limit", type=float, default=5.0, show_default=True, help="Seconds of each search.")
@output_options
def command(
    plan: Path,
    layer: int | None,
    device: str | None,
    model: str | None,
    sensitivity: Path | None,
    profile: Path | None,
    time_limit: float,
    as_json: bool,
) -> None:
    """Why the plan of OUT (a compiled model) or PLAN.json (of `llmpq plan --json`) is as it is."""
    from llmpq.answers.explanation import explain
    from llmpq.explaining import planned_program

    with progress("planning again"):
        program = planned_program(plan, model, sensitivity, profile)
        found = explain(program, layer=layer, device=device, time_limit_s=time_limit)
    for text in found.notices:
        notice(text)
    if as_json:
        print_json(found)
    else:
        stdout().print(str(found))
