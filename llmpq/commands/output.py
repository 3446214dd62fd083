"""What commands print: results on stdout, progress and notices on stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from llmpq.plan import DeviceMemory, Plan
from llmpq.printing import format_optimality, format_quality, format_stage
from llmpq.serialize import to_json
from llmpq.units import format_bytes, format_seconds

ProgressCallback = Any


def stdout() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    click.echo(json.dumps(to_json(value), indent=2))


def notice(text: str) -> None:
    """One line of advice on stderr."""
    click.echo(f"llmpq: notice: {text}", err=True)


@contextmanager
def progress() -> Iterator[ProgressCallback]:
    """A callback (what, done, total) that draws a bar with the time left while the block runs."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            stage = what.split(":", 1)[0]
            if stage not in tasks:
                tasks[stage] = bar.add_task(what, total=total)
            bar.update(tasks[stage], description=what, completed=done, total=total)

        yield update


def plan_table(plan: Plan) -> Table:
    """A row per stage: device, layers with their options, memory."""
    table = Table(title=f"{plan.model}: {len(plan.stages)} stage{'s' * (len(plan.stages) != 1)}, {plan.compute_dtype}")
    table.add_column("device", no_wrap=True)
    table.add_column("layers")
    for column in ("weights", "kv cache", "other", "total", "capacity"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage, memory in zip(plan.stages, plan.prediction.memory, strict=True):
        table.add_row(stage.device, format_stage(stage).removeprefix("layers "), *_memory_cells(memory))
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
    console, prediction, pipeline = stdout(), plan.prediction, plan.pipeline
    console.print(plan_table(plan))
    console.print(
        f"micro-batches   prefill {pipeline.prefill_micro_batch}, decode {pipeline.decode_micro_batch} "
        f"of {plan.workload.batch_size} sequences"
    )
    console.print(
        f"predicted       {plan.tokens_per_s:.4g} tokens/s; prefill {format_seconds(prediction.prefill_s)}, "
        f"decode {format_seconds(prediction.decode_s)} ({prediction.provenance})"
    )
    console.print(f"quality         {format_quality(plan)}")
    console.print(f"optimality      {format_optimality(plan)}")
