"""Plans beside their baselines: predicted speed, quality, proof and seconds of search, as a table and as JSON.

python benchmarks/plans.py [--model M --cluster C ...] [--all] [--json FILE]
"""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from machine import machine
from rich.console import Console
from rich.table import Table

from llmpq.compiler import plan as make_program
from llmpq.errors import LlmpqError
from llmpq.options import Options
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning.baselines import only_option
from llmpq.planning.candidates import build_problem, candidate_groups
from llmpq.planning.search import search
from llmpq.planning.space import Space
from llmpq.printing import format_ranges
from llmpq.program import Program, Target
from llmpq.solver.milp import solve
from llmpq.units import format_seconds
from llmpq.versions import library_versions
from llmpq.workload import Batch

ASSIGNMENTS = ("assign-joint", "assign-hand", "assign-even", "assign-fastest")
WORKLOAD = Batch(32, 512, 100)
WIDTH = 100
RESULTS = Path(__file__).parent / "results" / "plans.json"


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    cluster: str
    engine: str


ALL = tuple(
    Case(model, cluster, engine)
    for model, cluster in (
        ("llama-3-70b", "4xL4,2xA100-40"),
        ("opt-30b", "3xT4+1xV100-32"),
        ("llama-3-70b", "2xRTX3090+1xRTX4090"),
        ("qwen2.5-32b", "1xA100-80,1xL4"),
    )
    for engine in ("local", "vllm")
)


def compare(case: Case, workload: Batch, precisions: str) -> dict[str, Any]:
    """Every assignment of one case; where a baseline broke the default budget, the joint plan at its sensitivity as well."""
    head = {"model": case.model, "cluster": case.cluster, "engine": case.engine}
    started = time.perf_counter()
    try:
        program = make_program(case.model, case.cluster, workload, engine=case.engine, precisions=precisions)
    except LlmpqError as error:
        return {**head, "error": str(error)}
    program = replace(program, plan=None, notices=())
    whole = time.perf_counter() - started
    rows = [row(program, name) for name in ASSIGNMENTS]
    budget = program.request.target.budget
    over = sorted({entry["sensitivity"] for entry in rows if "error" not in entry and entry["sensitivity"] > (budget or 0.0)})
    for sensitivity in over if budget is not None else ():
        rows.append({**row(at_budget(program, sensitivity), "assign-joint"), "at": sensitivity})
    return {**head, "costs": program.require("costs").provenance, "whole_seconds": whole, "rows": rows, "ladder": ladder(program)}


def at_budget(program: Program, budget: float) -> Program:
    return replace(program, request=replace(program.request, target=Target(budget * (1 + 1e-6), explicit=True)))


def row(program: Program, name: str) -> dict[str, Any]:
    """One assignment: the plan in figures, or why there is none."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = run_passes(program, parse_pipeline(name))
    except LlmpqError as error:
        return {"name": name, "error": str(error)}
    took = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {"name": name, **figures(result.require("plan")), **took, "notices": list(result.notices)}


def figures(plan: Plan) -> dict[str, Any]:
    return {
        "tokens_per_s": plan.tokens_per_s,
        "prefill_s": plan.prediction.prefill_s,
        "decode_s": plan.prediction.decode_s,
        "micro_batches": [plan.pipeline.prefill_micro_batch, plan.pipeline.decode_micro_batch],
        "stages": [{"device": stage.device, "layers": format_ranges(stage.options, stage.first_layer)} for stage in plan.stages],
        "sensitivity": plan.quality.sensitivity,
        "budget": plan.quality.budget,
        "gap": plan.optimality.gap,
        "proven": plan.optimality.proven,
    }


def ladder(program: Program) -> list[dict[str, Any]]:
    """From the even split to the joint plan, one freedom at a time, at the even split's precision until the last two steps."""
    try:
        even = run_passes(program, parse_pipeline("assign-even")).require("plan")
    except LlmpqError:
        return []
    option = program.require("costs").options.index(even.options[0])
    sensitivity, steps = even.quality.sensitivity, [("even split", even.prediction.latency_s)]
    partition = best_partition(program, option)
    steps += [("best partition, all devices in the order of the cluster", partition)] if partition is not None else []
    anywhere = search(program, None, space=Space(restrictions=(partial(only_option, option=option),)))
    steps += [("best devices and order", anywhere.objective)] if anywhere is not None else []
    names = ("best uniform precision (assign-hand)", "a precision for each layer (assign-joint)")
    for name, step in zip(("assign-hand", "assign-joint"), names):
        plan = run_passes(program, parse_pipeline(name)).require("plan")
        steps.append((f"{step}, +{plan.quality.sensitivity:.4f} nats", plan.prediction.latency_s))
    tokens = program.request.workload.batch_size * program.request.workload.gen_len
    first = f"{even.options[0]}, +{sensitivity:.4f} nats: "
    return [
        {"step": (first if i == 0 else "") + step, "tokens_per_s": tokens / seconds} for i, (step, seconds) in enumerate(steps)
    ]


def best_partition(program: Program, option: int) -> float | None:
    """Seconds of the best ranges of all devices in the order of the cluster at one precision, over all micro-batch sizes."""
    best: float | None = None
    every = len(program.request.cluster.devices)
    for group in candidate_groups(program):
        if len(group.devices) == every and group.in_flight in (None, every):
            problem = only_option(build_problem(program, group.candidate(), None), option)
            found = solve(replace(problem, every_device_used=True), gap=program.request.gap, time_limit_s=10.0, cutoff=best)
            best = found.objective if found.objective is not None else best
    return best


def label(entry: dict[str, Any]) -> str:
    name = str(entry["name"]).removeprefix("assign-")
    return f"{name} at {entry['at']:.4f}" if "at" in entry else name


def table(result: dict[str, Any]) -> Table:
    """A row per plan that exists; a star marks one beyond the default budget."""
    shown = Table(title=f"{result['model']} on {result['cluster']}, engine {result['engine']}")
    for column in ("plan", "tokens/s", "prefill", "decode", "devices", "nats", "gap", "cpu s"):
        shown.add_column(column, no_wrap=True, justify="left" if column == "plan" else "right")
    for entry in (entry for entry in result["rows"] if "error" not in entry):
        gap = "-" if entry["gap"] is None else f"{entry['gap']:.2%}{'' if entry['proven'] else ' open'}"
        times = (format_seconds(entry["prefill_s"]), format_seconds(entry["decode_s"]))
        quality = f"{entry['sensitivity']:.4f}{'*' if entry['notices'] else ''}"
        took = f"{entry['cpu_seconds']:.2f}"
        shown.add_row(label(entry), f"{entry['tokens_per_s']:.1f}", *times, str(len(entry["stages"])), quality, gap, took)
    return shown


def details(result: dict[str, Any]) -> list[str]:
    """What runs where, why a plan does not exist, and the ladder from the even split to the joint plan."""
    lines = [f"costs: {result['costs']}"]
    for entry in result["rows"]:
        if "error" in entry:
            lines.append(f"{label(entry)}: {entry['error']}")
            continue
        prefill, decode = entry["micro_batches"]
        lines.append(f"{label(entry)}: micro-batches {prefill} (prefill), {decode} (decode)")
        lines += [f"  {stage['device']}: {stage['layers']}" for stage in entry["stages"]]
    return lines + [f"{step['tokens_per_s']:.1f} tokens/s: {step['step']}" for step in result["ladder"]]


@click.command()
@click.option("--model", default="llama-3-70b", show_default=True)
@click.option("--cluster", default="4xL4,2xA100-40", show_default=True)
@click.option("--engine", default="local", show_default=True)
@click.option("--batch-size", default=WORKLOAD.batch_size, show_default=True)
@click.option("--prompt-len", default=WORKLOAD.prompt_len, show_default=True)
@click.option("--gen-len", default=WORKLOAD.gen_len, show_default=True)
@click.option("--precisions", default=",".join(Options().precisions), show_default=True)
@click.option("--all", "everything", is_flag=True, help="All cases, for engines local and vllm, instead of one.")
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), help=f"Write here; --all: results/{RESULTS.name}."
)
def main(everything: bool, path: Path | None, precisions: str, **values: Any) -> None:
    """Plan and baselines beside each other, under the same quality budget and by the same costs."""
    workload = Batch(values["batch_size"], values["prompt_len"], values["gen_len"])
    cases = ALL if everything else (Case(values["model"], values["cluster"], values["engine"]),)
    results = []
    for case in cases:
        results.append(compare(case, workload, precisions))
        show(results[-1])
    path = path or (RESULTS if everything else None)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        shape = {"batch_size": workload.batch_size, "prompt_len": workload.prompt_len, "gen_len": workload.gen_len}
        report = {"machine": machine(), "versions": library_versions(), "workload": shape, "cases": results}
        path.write_text(json.dumps(report, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False, width=WIDTH)
    if "error" in result:
        console.print(f"{result['model']} on {result['cluster']}, engine {result['engine']}: {result['error']}\n")
        return
    console.print(table(result))
    console.print("\n".join(details(result)) + "\n", soft_wrap=True)


if __name__ == "__main__":
    main()
