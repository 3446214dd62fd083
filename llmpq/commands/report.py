"""llmpq report: a plan as one self-contained HTML page."""

from pathlib import Path

import click

from llmpq.commands.output import output_options, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile
from llmpq.units import format_bytes


@click.command("report")
@click.argument("path", metavar="OUT|PLAN.json", type=click.Path(path_type=Path, exists=True))
@click.option("--out", "-o", "out", type=OutputFile(), required=True, help="The HTML file to write.")
@click.option("--profile", type=click.Path(path_type=Path, dir_okay=False), help="The profile that the plan rests on.")
@click.option("--validation", type=click.Path(path_type=Path, dir_okay=False), help="What `llmpq validate OUT --json` printed.")
@click.option("--pareto", type=click.Path(path_type=Path, dir_okay=False), help="What `llmpq pareto MODEL --json` printed.")
@output_options
def command(path: Path, out: Path, profile: Path | None, validation: Path | None, pareto: Path | None, as_json: bool) -> None:
    """Write one self-contained page about a compiled model, or about a plan that `llmpq plan --json` printed.

    It shows memory, the precision of every layer, the schedule, quality and the commands to run. It needs no network.
    """
    from llmpq.report.page import render
    from llmpq.report.sources import read_report

    with progress("planning again"):
        report = read_report(path, profile, validation, pareto)
    page = render(report)
    out.write_text(page, encoding="utf-8")
    if as_json:
        print_json({"path": str(out), "bytes": len(page.encode())})
    else:
        stdout().print(f"{out}: {format_bytes(len(page.encode()))}")
