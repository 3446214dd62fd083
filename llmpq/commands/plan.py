"""llmpq plan: the same decision from the configuration alone."""

from typing import Any

import click

from llmpq.commands import completions
from llmpq.commands.answers import answer_options, assignment, is_asked, print_answers
from llmpq.commands.infeasible import explained
from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import print_kv_blocks, print_plan, print_program, print_replica_hint, progress


@click.command("plan")
@click.argument("model", shell_complete=completions.models)
@planning_options
@answer_options
def command(model: str, as_json: bool, **values: Any) -> None:
    """Decide, from the configuration of MODEL alone, what runs where and at which precision.

    MODEL is a directory, a hub id, `demo`, or a bundled configuration such as llama-3-70b.
    """
    from llmpq.compiler import plan

    planning = Planning.of(values | {"assign": assignment(values)})
    with progress(planning.title), explained(as_json):
        program = plan(
            model,
            planning.cluster,
            planning.workload,
            observe=planning.observer,
            before=planning.before,
            stop_after=planning.last,
            **planning.options,
        )
    if values["stop_after"]:
        print_program(program, as_json)
        return
    asked = is_asked(values)
    if not (asked and as_json):
        print_plan(program.require("plan"), program.request.cluster.notices + program.notices, as_json)
    if not as_json:
        print_kv_blocks(program.require("plan"), program.graph, program.request.engine)
        print_replica_hint(program)
    if asked:
        print_answers(program, values, as_json)
