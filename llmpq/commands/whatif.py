"""llmpq whatif: the best plan on other hardware, a row per alternative."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from llmpq.commands import completions
from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import notice, print_json, progress, stdout

if TYPE_CHECKING:
    from llmpq.answers.whatif import Outcome

VERBS = ("add", "remove", "replace", "link")


@click.command("whatif")
@click.argument("model", shell_complete=completions.models)
@planning_options
@click.option("--add", multiple=True, metavar="1xL4", help="Devices more, on a host of their own; +1xL4: on the first host.")
@click.option("--remove", multiple=True, metavar="NAME", help="Without a device, or several: T4:0,T4:1.")
@click.option("--replace", multiple=True, metavar="NAME=TYPE", help="A device of another type instead: T4:0=L4.")
@click.option("--link", multiple=True, metavar="WHERE=BW", help='"between_hosts=25 Gbit/s", "T4:0-L4:0=2 GB/s,50 us".')
@click.option("--price", multiple=True, metavar="TYPE=PRICE", help="Per hour, of a type or a device: T4=0.35. In every row.")
def command(model: str, price: tuple[str, ...], **values: Any) -> None:
    """What MODEL would do on other hardware: each --add, --remove, --replace and --link is one alternative, one row."""
    from llmpq.answers.cluster_changes import ClusterChange, changed, with_prices
    from llmpq.answers.whatif import whatif
    from llmpq.compiler import prepare
    from llmpq.hardware.cluster import Cluster

    planning = Planning.of(values)
    before = planning.cluster if isinstance(planning.cluster, Cluster) else Cluster.load(planning.cluster)
    asked = [changed(before, verb, text) for verb in VERBS for text in values[verb]]
    cluster, *others = with_prices((before, *(change.cluster for change in asked)), price)
    changes = [ClusterChange(change.words, other) for change, other in zip(asked, others, strict=True)]
    with progress("planning"):
        program = prepare(model, cluster, planning.workload, observe=planning.observer, **planning.options)
        found = whatif(program, changes)
    notices = (*program.notices, *(text for other in (cluster, *others) for text in other.notices))
    for text in dict.fromkeys(notices):
        notice(text)
    if values["as_json"]:
        print_json(found)
    else:
        stdout().print(outcomes_table(found, f"{program.graph.model} on {cluster.name}"))


def outcomes_table(found: "tuple[Outcome, ...]", title: str) -> Table:
    """A row per alternative, beneath it the devices that its plan uses, or why there is none; a star: beyond the budget."""
    table = Table(title=f"{title} (* breaks the quality budget)", title_justify="left", show_lines=True)
    table.add_column("change")
    priced = any(item.tokens_per_unit is not None for item in found)
    for column in ("tokens/s", "x", *(("/hour", "tokens/unit") if priced else ()), "nats", "seqs"):
        table.add_column(column, justify="right", no_wrap=True)
    for item in found:
        table.add_row(*_cells(item, found[0], priced))
    return table


def _cells(item: "Outcome", base: "Outcome", priced: bool) -> list[str]:
    kinds = Counter(name.partition(":")[0] for name in item.used)
    used = item.reason or "uses " + ", ".join(f"{count}x{kind}" for kind, count in kinds.items())
    speed = "-" if item.tokens_per_s is None else f"{item.tokens_per_s:.4g}"
    ratio = "" if item.tokens_per_s is None or not base.tokens_per_s else f"{item.tokens_per_s / base.tokens_per_s:.2f}"
    hour = "-" if item.price_per_hour is None else f"{item.price_per_hour:.4g}"
    unit = "-" if item.tokens_per_unit is None else f"{item.tokens_per_unit:,.0f}"
    loss = "-" if item.sensitivity is None else f"{item.sensitivity:.4f}{'' if item.kept else '*'}"
    several = "-" if item.concurrency is None else str(item.concurrency)
    return [f"{item.change}\n  {used}", speed, ratio, *((hour, unit) if priced else ()), loss, several]
