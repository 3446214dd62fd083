"""llmpq max-context: longest context that fits, and who is short of memory beyond it."""

from typing import Any

import click

from llmpq.commands import completions
from llmpq.commands.limits import answer
from llmpq.commands.options import planning_options


@click.command("max-context")
@click.argument("model", shell_complete=completions.models)
@planning_options
def command(model: str, **values: Any) -> None:
    """The longest context (prompt and generation together) that fits, for each choice of precisions."""
    from llmpq.planning.limits import max_context

    answer(model, values, max_context, "longest context", "{batch_size} sequences, {gen_len} tokens of each generated")
