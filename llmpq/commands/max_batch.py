"""llmpq max-batch: largest batch that fits, and who is short of memory beyond it."""

from typing import Any

import click

from llmpq.commands import completions
from llmpq.commands.limits import answer
from llmpq.commands.options import planning_options


@click.command("max-batch")
@click.argument("model", shell_complete=completions.models)
@planning_options
def command(model: str, **values: Any) -> None:
    """The largest batch that fits, for each choice of precisions."""
    from llmpq.planning.limits import max_batch

    answer(model, values, max_batch, "largest batch", "prompts of {prompt_len} tokens, {gen_len} generated")
