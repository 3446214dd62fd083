"""llmpq verify: a compiled model's files, tensors and a numerical smoke test."""

from pathlib import Path

import click

from llmpq.answers.plan_file import PLAN_FILE
from llmpq.checkpoint.output_directory import require_output
from llmpq.commands.output import output_options, print_json, progress, stdout
from llmpq.units import format_bytes


@click.command("verify")
@click.argument("out", type=click.Path(path_type=Path))
@output_options
def command(out: Path, as_json: bool) -> None:
    """Check the files of OUT against its manifest, their tensors against the plan, and every stage by a numerical smoke test."""
    if not (out / PLAN_FILE).is_file():  # where only the manifest is lost or damaged, that is told
        require_output(out)
    from llmpq.checkpoint.manifest import verify
    from llmpq.compiled import load

    with progress("checking"):
        manifest = verify(out)
        checked = load(out).smoke_test()
    if as_json:
        print_json({"files": manifest.files, "engines": manifest.engines, "smoke_test": checked})
        return
    total = sum(entry.bytes for entry in manifest.files.values())
    console = stdout()
    console.print(f"{out}: {len(manifest.files)} files, {format_bytes(total)}: names, sizes and checksums as in the manifest")
    console.print(f"tensors of {len(checked)} stages as in the plan; every stage computed finite numbers")
    for engine, reason in manifest.engines.items():
        console.print(f"  {engine}: {'loads it' if reason is True else reason}")
