"""llmpq simulate: a plan in simulated time: requests served, or a batch; percentiles, and the schedule of every stage."""

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from llmpq.commands import completions
from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import notice, print_json, progress, stdout
from llmpq.commands.output_file import OutputFile
from llmpq.errors import InputError
from llmpq.plan import Load, Plan, Prediction
from llmpq.simulation.percentiles import Percentiles, Service, service
from llmpq.simulation.requests import Request, poisson, read_trace
from llmpq.units import format_seconds
from llmpq.workload import Batch, Serving

if TYPE_CHECKING:
    from llmpq.backends.simulator import BatchRun
    from llmpq.simulation.simulator import Run

BATCH_FIGURES = ("seconds", "prefill_s", "tokens_per_s", "busy")


@click.command("simulate")
@click.argument("model", shell_complete=completions.models)
@planning_options
@click.option("--requests", "count", type=click.IntRange(min=1), default=1000, show_default=True, help="Requests at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals, where there is no trace.")
@click.option("--gantt", type=OutputFile(), help="Write the first 5000 steps of the stages to this JSON file.")
def command(model: str, count: int, seed: int, gantt: Path | None, **values: Any) -> None:
    """Plan MODEL for serving, then serve the requests of --trace, or of a Poisson process at --rate, in simulated time.

    The scheduler is that of vLLM: first come first served, chunked prompts, blocks of cache, one token per trip.
    With --batch-size: the schedule of our own engine for that batch.
    """
    from llmpq.backend import load_predictor
    from llmpq.compiler import plan

    planning = Planning.of(values)
    workload = planning.workload
    if isinstance(workload, Batch) and values["engine"] != "local":
        raise InputError(f"of {values['engine']} serving is simulated; give --rate, or a --trace of requests")
    requests = _requests(workload, values["trace"], count, seed) if isinstance(workload, Serving) else ()
    with progress(planning.title) as report:
        program = plan(model, planning.cluster, workload, observe=planning.observer, **planning.options)
        report("simulating", 0, 1)
        made = program.require("plan")
        simulator = load_predictor("simulator")(made, program.graph, program.request.profile)
        run: Run | BatchRun
        run = simulator.serve(requests, 5000 if gantt else 0) if isinstance(workload, Serving) else simulator.run()
    if not values["as_json"]:
        for text in program.notices:
            notice(text)
    _show(made, run, values["as_json"])
    if gantt is not None:
        gantt.write_text(json.dumps([_span(span) for span in run.spans]) + "\n", encoding="utf-8")


def _show(plan: Plan, run: "Run | BatchRun", as_json: bool) -> None:
    """What was simulated, beside what was planned."""
    batch = isinstance(plan.workload, Batch)
    planned: Any = plan.prediction if batch else plan.load
    simulated: Any = {name: getattr(run, name) for name in BATCH_FIGURES} if batch else service(run)  # type: ignore[arg-type]
    if as_json:
        print_json({"planned": planned, "simulated": simulated})
    elif isinstance(plan.workload, Serving):
        _print(simulated, planned, plan.workload)
    else:
        _print_batch(simulated, planned)


def _print_batch(found: dict[str, Any], planned: Prediction) -> None:
    console = stdout()
    console.print(f"prefill         {format_seconds(found['prefill_s'])}; {format_seconds(planned.prefill_s)} planned")
    console.print(f"end to end      {format_seconds(found['seconds'])}; {format_seconds(planned.latency_s)} planned")
    console.print(f"tokens/s        {found['tokens_per_s']:.4g}")
    console.print(f"stages busy     {', '.join(f'{share:.0%}' for share in found['busy'])} of the time")


def _requests(workload: Serving, trace: Path | None, count: int, seed: int) -> tuple[Request, ...]:
    if trace is not None:
        return read_trace(trace, limit=count)
    return poisson(workload.rate_per_s, workload.prompt_len, workload.gen_len, count, seed)


def _span(span: Any) -> dict[str, Any]:
    return {field.name: getattr(span, field.name) for field in fields(span)}


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
