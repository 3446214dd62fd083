"""What commands print: results on stdout, progress and notices on stderr."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from llmpq.costs.kv_blocks import PAGED, kv_blocks
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import TOGETHER
from llmpq.plan import DeviceMemory, Plan
from llmpq.planning.replica_hint import replica_hint
from llmpq.printing import (
    format_cache,
    format_optimality,
    format_phases,
    format_program,
    format_quality,
    format_rate_band,
    format_resident,
    format_sizes,
    format_speed,
    format_stage,
    format_together,
    format_weight,
)
from llmpq.program import Program
from llmpq.serialize import to_json
from llmpq.units import format_bytes
from llmpq.workload import Serving

F = TypeVar("F", bound=Callable[..., Any])
ProgressCallback = Any
PATIENCE_S = 1.0  # of silence before a terminal is told what is going on
QUIET = "llmpq.quiet"  # in the meta of click's context


def json_option(function: F) -> F:
    """Add --json, handed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def quiet_option(function: F) -> F:
    """Add --quiet, which `notice` and `progress` obey; the command itself does not see it."""

    def keep(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[QUIET] = value

    told = "No notices and no progress on stderr; errors are told all the same."
    return click.option("--quiet", "-q", is_flag=True, expose_value=False, callback=keep, help=told)(function)


def output_options(function: F) -> F:
    """Add what every command with a result takes: --json and --quiet."""
    return json_option(quiet_option(function))


def is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def stdout() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    click.echo(json.dumps(to_json(value), indent=2))


def notice(text: str) -> None:
    """One line of advice on stderr, unless the command was told to be quiet."""
    if not is_quiet():
        click.echo(f"llmpq: notice: {text}", err=True)


@contextmanager
def progress(first: str = "starting") -> Iterator[ProgressCallback]:
    """A callback (what, done, total) that draws a bar with the time left while the block runs, on a terminal.

    Where nothing was reported within a second, `first` is shown with the seconds gone by until something is.
    """
    console, tasks = stderr(), dict[str, TaskID]()
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, *times, console=console, transient=True, disable=is_quiet() or not console.is_terminal)

    def wait() -> None:
        if not tasks:
            tasks[first] = bar.add_task(first, total=None)

    def update(what: str, done: int, total: int) -> None:
        if first in tasks:
            bar.remove_task(tasks.pop(first))
        stage = what.split(":", 1)[0]
        if stage not in tasks:
            tasks[stage] = bar.add_task(what, total=total)
        bar.update(tasks[stage], description=what, completed=done, total=total)

    patience = Timer(PATIENCE_S, wait)
    patience.daemon = True
    with bar:
        patience.start()
        try:
            yield update
        finally:
            patience.cancel()


def print_program(program: Program, as_json: bool = False) -> None:
    """The canonical text of a program, or as JSON with the plan, if there is one, as a value."""
    text = format_program(program)
    if as_json:
        print_json({"text": text, "plan": program.plan})
    else:
        click.echo(text)


def plan_table(plan: Plan) -> Table:
    """A row per stage: device, layers with their options, memory."""
    table = Table(
        title=f"{plan.model}: {len(plan.stages)} stage{'s' * (len(plan.stages) != 1)}, {plan.compute_dtype}{format_cache(plan)}"
    )
    table.add_column("device", no_wrap=True)
    table.add_column("layers")
    for column in ("weights", "kv cache", "other", "total", "capacity"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage, memory in zip(plan.stages, plan.prediction.memory, strict=True):
        table.add_row(_folded(stage.device), format_stage(stage).removeprefix("layers "), *_memory_cells(memory))
    return table


def _memory_cells(memory: DeviceMemory) -> tuple[str, ...]:
    other = memory.activations + memory.embedding + memory.head
    return tuple(format_bytes(term) for term in (memory.weights, memory.kv_cache, other, memory.total, memory.capacity))


def print_plan(plan: Plan, notices: tuple[str, ...], as_json: bool = False) -> None:
    """The plan for people, or as JSON; notices on stderr."""
    for text in notices:
        notice(text)
    if as_json:
        print_json(plan)
        return
    if len(plan.pipelines) > 1:
        for number, (one, pipeline) in enumerate(zip(plan.replicas, plan.pipelines)):
            weight = pipeline.replica.weight if pipeline.replica is not None else 1.0
            stdout().print(f"replica {number}       {format_weight(weight, plan.workload)}")
            _print_pipeline(one)
        stdout().print(f"together        {format_together(plan)}")
        return
    _print_pipeline(plan)
    stdout().print(f"optimality      {format_optimality(plan)}")


def _print_pipeline(plan: Plan) -> None:
    console, prediction, pipeline = stdout(), plan.prediction, plan.pipeline
    console.print(plan_table(plan))
    if isinstance(plan.workload, Serving):
        what, _, sizes = format_sizes(plan).partition(": ")
        console.print(f"{what:<15} {sizes}")
        console.print(f"predicted       {format_speed(plan)} ({prediction.provenance})")
    else:
        console.print(
            f"micro-batches   prefill {pipeline.prefill_micro_batch}, decode {pipeline.decode_micro_batch} "
            f"of {plan.workload.batch_size} sequences{format_resident(plan)}"
        )
        rate = f"{plan.tokens_per_s:.4g} tokens/s{format_rate_band(plan)}"
        console.print(f"predicted       {rate}; {format_phases(plan)} ({prediction.provenance})")
    console.print(f"quality         {format_quality(plan)}")


def _folded(device: str) -> str:
    """The name of a device; that of a group two devices a line."""
    members = device.split(TOGETHER)
    lines = (TOGETHER.join(members[start : start + 2]) for start in range(0, len(members), 2))
    return f"{TOGETHER}\n".join(lines)


def print_replica_hint(program: Program) -> None:
    """That a plan for serving leaves room for other pipelines, if so."""
    hint = replica_hint(program, program.require("plan"))
    if hint is not None:
        stdout().print(f"replicas        {hint}")


def print_kv_blocks(plan: Plan, graph: LayerGraph, engine: str) -> None:
    """What an engine with paged attention gets: the blocks of the rank with the least room, on every rank."""
    if engine not in PAGED:
        return
    if len(plan.pipelines) > 1:
        for one in plan.replicas:
            print_kv_blocks(one, graph, engine)
        return
    blocks = kv_blocks(plan, graph)
    tightest = plan.stages[blocks.tightest].device
    stdout().print(
        f"kv blocks       {blocks.count} of {blocks.block_size} tokens on every rank ({tightest} has the least room); "
        f"the workload needs {blocks.needed}"
    )
