"""llmpq compile: plan, quantize and write one shard per device."""

from pathlib import Path
from typing import Any

import click

from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import print_plan, progress, stdout


@click.command("compile")
@click.argument("model")
@planning_options
@click.option("--out", "-o", "out", type=click.Path(path_type=Path), required=True, help="The directory to write.")
def command(model: str, out: Path, as_json: bool, **values: Any) -> None:
    """Plan, quantize and write MODEL as one shard per device."""
    from llmpq.compiler import compile

    planning = Planning.of(values)
    with progress() as advance:
        compiled = compile(
            model,
            planning.cluster,
            planning.workload,
            out=out,
            observe=planning.observer,
            progress=advance,
            **planning.options,
        )
    print_plan(compiled.plan, compiled.notices, as_json)
    if as_json:
        return
    stdout().print(f"written         {out}; next: llmpq verify {out}, llmpq run {out} --prompt TEXT")
