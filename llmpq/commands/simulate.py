"""llmpq simulate: requests served by a plan, in simulated time: percentiles, and the schedule of every stage."""

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from llmpq.commands import completions
from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import notice, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile
from llmpq.errors import InputError
from llmpq.plan import Load
from llmpq.simulation.percentiles import Percentiles, Service, service
from llmpq.simulation.requests import Request, poisson, read_trace
from llmpq.units import format_seconds
from llmpq.workload import Serving


@click.command("simulate")
@click.argument("model", shell_complete=completions.models)
@planning_options
@click.option("--requests", "count", type=click.IntRange(min=1), default=1000, show_default=True, help="Requests at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals, where there is no trace.")
@click.option("--gantt", type=OutputFile(), help="Write the first 5000 steps of the stages to this JSON file.")
def command(model: str, count: int, seed: int, gantt: Path | None, **values: Any) -> None:
    """Plan MODEL for serving, then serve the requests of --trace, or of a Poisson process at --rate, in simulated time.

    The scheduler is that of vLLM: first come first served, chunked prompts, blocks of cache, one token per trip.
    """
    from llmpq.compiler import plan
    from llmpq.simulation.planned import load_of, simulate_plan

    planning = Planning.of(values)
    if not isinstance(planning.workload, Serving):
        raise InputError("what is simulated is serving; give --rate, or a --trace of requests")
    workload = planning.workload
    requests = _requests(workload, values["trace"], count, seed)
    with progress(planning.title) as report:
        program = plan(model, planning.cluster, workload, observe=planning.observer, **planning.options)
        report("simulating", 0, 1)
        run = simulate_plan(program.require("plan"), program.graph, program.request.engine, requests, 5000 if gantt else 0)
    found, load = service(run), load_of(program.require("plan"))
    if values["as_json"]:
        print_json({"planned": load, "simulated": found})
    else:
        for text in program.notices:
            notice(text)
        _print(found, load, workload)
    if gantt is not None:
        gantt.write_text(json.dumps([_span(span) for span in run.spans]) + "\n", encoding="utf-8")


def _requests(workload: Serving, trace: Path | None, count: int, seed: int) -> tuple[Request, ...]:
    if trace is not None:
        return read_trace(trace, limit=count)
    return poisson(workload.rate_per_s, workload.prompt_len, workload.gen_len, count, seed)


def _span(span: Any) -> dict[str, float]:
    names = ("stage", "step", "start_s", "end_s", "prefill_tokens", "decode_sequences")
    return {name: getattr(span, name) for name in names}


def _print(found: Service, load: Load, workload: Serving) -> None:
    console = stdout()
    table = Table(title=f"{found.requests} requests", title_justify="left")
    for column in ("", "planned", "mean", "median", "90 %", "99 %", "limit"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("first token", f"at most {format_seconds(load.ttft_s)}", *_cells(found.ttft), _limit(workload.ttft_s))
    if found.tpot is not None:
        table.add_row("per token", format_seconds(load.tpot_s), *_cells(found.tpot), _limit(workload.tpot_s))
    table.add_row("whole answer", "", *_cells(found.latency), "")
    console.print(table)
    console.print(f"tokens/s        {found.tokens_per_s:.1f} served; {load.tokens_per_s:.1f} planned at full load")
    console.print(f"sequences       {found.peak_running} at most together; {load.running} planned; {found.preemptions} preempted")
    busy = ", ".join(f"{share:.0%}" for share in found.busy)
    console.print(f"stages busy     {busy} of the time, in {found.steps} steps")


def _cells(found: Percentiles) -> tuple[str, ...]:
    return tuple(format_seconds(value) for value in (found.mean, found.p50, found.p90, found.p99))


def _limit(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds)
