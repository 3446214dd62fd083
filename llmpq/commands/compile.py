"""llmpq compile: plan, quantize and write one shard per device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from llmpq.checkpoint.output_directory import is_output
from llmpq.checkpoint.replacing import require_replaceable
from llmpq.commands import completions
from llmpq.commands.given import by_plan, plan_option
from llmpq.commands.infeasible import explained
from llmpq.commands.options import Planning, planning_options
from llmpq.commands.output import print_kv_blocks, print_plan, print_program, progress, stdout
from llmpq.commands.signals import stopped_by_sigterm
from llmpq.plan import Plan
from llmpq.program import Program


@click.command("compile")
@click.argument("model", shell_complete=completions.models)
@planning_options
@plan_option
@click.option("--out", "-o", "out", type=click.Path(path_type=Path), required=True, help="The directory to write.")
def command(model: str, out: Path, as_json: bool, **values: Any) -> None:
    """Plan, quantize and write MODEL as one shard per device; with --plan, by a plan that is there already."""
    from llmpq.replicated import may_replace

    require_replaceable(out, lambda path: is_output(path) or may_replace(path))
    from llmpq.checkpoint.quantization_report import read_report
    from llmpq.compiler import compile, plan
    from llmpq.quality_check import format_check
    from llmpq.quality_loop import read_check

    planning = Planning.of(values)
    if values["given"] is not None:
        planning = by_plan(planning, values["given"])
    if values["stop_after"]:
        stopped = plan(
            model,
            planning.cluster,
            planning.workload,
            observe=planning.observer,
            before=planning.before,
            stop_after=planning.last,
            **planning.options,
        )
        print_program(stopped, as_json)
        return
    if planning.options.get("replicas", 1) > 1:
        with progress(planning.title), explained(as_json):
            planned = plan(model, planning.cluster, planning.workload, **planning.options)
        if len(planned.require("plan").pipelines) > 1:
            _compile_replicas(model, planned, planning, out, as_json)
            return
        planning = replace(planning, options={**planning.options, "replicas": 1})
    with progress(planning.title) as advance, explained(as_json), stopped_by_sigterm():
        compiled = compile(
            model,
            planning.cluster,
            planning.workload,
            out=out,
            observe=planning.observer,
            before=planning.before,
            progress=advance,
            **planning.options,
        )
    print_plan(compiled.plan, compiled.notices, as_json)
    if as_json:
        return
    print_kv_blocks(compiled.plan, compiled.graph, compiled.plan.engine)
    check = read_check(out)
    for line in [] if check is None else format_check(check):
        stdout().print(f"measured        {line}")
    stdout().print(f"quantized       {read_report(out)}")
    stdout().print(f"written         {out}; next: llmpq verify {out}, llmpq run {out} --prompt TEXT")


def _compile_replicas(model: str, program: Program, planning: Planning, out: Path, as_json: bool) -> None:
    """Each pipeline of the plan in a folder of its own."""
    from llmpq.replicated import compile_replicas

    plan: Plan = program.require("plan")
    with progress(planning.title) as advance, explained(as_json), stopped_by_sigterm():
        compiled = compile_replicas(model, plan, out, progress=advance, **planning.options)
    print_plan(plan, program.request.cluster.notices + program.notices, as_json)
    if as_json:
        return
    print_kv_blocks(plan, program.graph, plan.engine)
    folders = ", ".join(one.directory.name for one in compiled)
    stdout().print(f"written         {out}: {folders}, each a compiled model; next: llmpq export {out} --to vllm -o DIR")
