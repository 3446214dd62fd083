"""What commands print when no plan exists: the changes that make one possible, as a list or as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.table import Table

from llmpq.commands.output import print_json, stdout
from llmpq.errors import InfeasibleError
from llmpq.fix import Fix


@contextmanager
def explained(as_json: bool) -> Iterator[None]:
    """Print the fixes of an InfeasibleError that leaves the block; the error itself goes on to the command line's one line."""
    try:
        yield
    except InfeasibleError as error:
        if as_json:
            print_json({"plan": None, "reasons": error.reasons, "fixes": error.fixes})
        elif error.fixes:
            stdout().print(fixes_table(error.fixes))
        raise


def fixes_table(fixes: tuple[Fix, ...]) -> Table:
    """A row per fix, and beneath it how to ask for it."""
    table = Table(title="Any one of these makes it fit; each was planned again", show_lines=True, title_justify="left")
    table.add_column("change")
    for column in ("tokens/s", "nats per token"):
        table.add_column(column, justify="right", no_wrap=True)
    for fix in fixes:
        table.add_row(f"{fix.change}\n  {fix.how}", f"{fix.tokens_per_s:.4g}", f"+{fix.sensitivity:.4f}")
    return table
