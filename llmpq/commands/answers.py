"""What `llmpq plan` can be asked for beside the plan: memory term by term, baselines, robustness."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.table import Table

from llmpq.commands.output import print_json, stdout
from llmpq.plan import DeviceMemory, Plan
from llmpq.program import Program

if TYPE_CHECKING:
    from llmpq.comparison import Compared
    from llmpq.planning.robust import Regret

F = TypeVar("F", bound=Callable[..., Any])
MIB = 2**20
FACTOR, SAMPLES, SEED = 1.2, 20, 0
TERMS = ("weights", "kv_cache", "activations", "embedding", "head", "total", "capacity")

_OPTIONS = (
    click.option("--explain-memory", is_flag=True, help="Every term of memory on every device, in bytes and MiB."),
    click.option("--compare", "compared", is_flag=True, help="The plan beside every baseline, same budget, same costs."),
    click.option("--robust", type=float, metavar="FACTOR", help="Regret when device speeds are off by up to this factor."),
    click.option("--minimise-regret", is_flag=True, help=f"Of nearly equal plans that of least regret (factor {FACTOR:g})."),
)


def answer_options(function: F) -> F:
    """Add the options of these questions to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def assignment(values: dict[str, Any]) -> str:
    """The assignment pass of the options: --minimise-regret takes the place of the joint one."""
    assign = str(values["assign"])
    if not values["minimise_regret"]:
        return assign
    if assign != "assign-joint":
        raise click.UsageError(f"--minimise-regret chooses the assignment; leave out --assign {assign}")
    return f"assign-robust{{factor={values['robust'] or FACTOR:g}}}"


def print_answers(program: Program, values: dict[str, Any], as_json: bool) -> None:
    """The answers to what was asked; as JSON one object with the plan."""
    plan: Plan = program.require("plan")
    asked = values["explain_memory"], values["compared"], values["robust"]
    memory = plan.prediction.memory if asked[0] else ()
    rows = _compare(program) if asked[1] else ()
    regret = _regret(program, plan, asked[2]) if asked[2] is not None else None
    if as_json:
        print_json({"plan": plan, "memory": memory, "comparison": rows, "robustness": regret})
        return
    if memory:
        stdout().print(memory_table(memory))
    if rows:
        stdout().print(comparison_table(rows))
    if regret is not None:
        stdout().print(
            f"robustness      speeds off by up to {regret.factor:g} ({regret.samples} samples, seed {regret.seed}): regret "
            f"median {regret.median:.2%}, 95 % {regret.percentile_95:.2%}, worst {regret.worst:.2%}"
        )


def is_asked(values: dict[str, Any]) -> bool:
    return bool(values["explain_memory"] or values["compared"] or values["robust"] is not None)


def _compare(program: Program) -> "tuple[Compared, ...]":
    from llmpq.comparison import compare

    return compare(program)


def _regret(program: Program, plan: Plan, factor: float) -> "Regret":
    from llmpq.planning.costing import on_groups_of
    from llmpq.planning.robust import choice_of, robustness

    program = on_groups_of(program, plan)
    return robustness(program, choice_of(program, plan), plan.quality.budget, factor, SAMPLES, SEED).regret(0)


def memory_table(memory: tuple[DeviceMemory, ...]) -> Table:
    """A row per device and term: bytes, and MiB."""
    table = Table(title="memory, term by term", title_justify="left")
    table.add_column("device", no_wrap=True)
    table.add_column("term", no_wrap=True)
    for column in ("bytes", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in memory:
        for term in TERMS:
            value = getattr(entry, term)
            name = entry.device if term == TERMS[0] else ""
            table.add_row(name, term.replace("_", " "), f"{value}", f"{value / MIB:.2f}", end_section=term == TERMS[-1])
    return table


def comparison_table(rows: "tuple[Compared, ...]") -> Table:
    """A row per planner; a star marks a quality budget that is not kept."""
    table = Table(title="the plan beside its baselines (* breaks the quality budget)", title_justify="left")
    table.add_column("planner", no_wrap=True)
    for column in ("tokens/s", "nats", "search"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("devices, or why there is no plan")
    for row in rows:
        speed = "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.4g}"
        loss = "-" if row.sensitivity is None else f"{row.sensitivity:.4f}{'' if row.kept else '*'}"
        table.add_row(row.name, speed, loss, f"{row.seconds:.2f} s", row.reason or ", ".join(row.devices))
    return table
