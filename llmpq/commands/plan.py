"""llmpq plan: the same decision from the configuration alone."""

from typing import Any

import click

from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import print_plan


@click.command("plan")
@click.argument("model")
@planning_options
def command(model: str, as_json: bool, **values: Any) -> None:
    """Decide, from the configuration of MODEL alone, what runs where and at which precision.

    MODEL is a directory, a hub id, `demo`, or a bundled configuration such as llama-3-70b.
    """
    from llmpq.compiler import plan

    planning = Planning.of(values)
    program = plan(model, planning.cluster, planning.workload, observe=planning.observer, **planning.options)
    print_plan(program.require("plan"), program.request.cluster.notices + program.notices, as_json)
