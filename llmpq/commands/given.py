"""--plan: what `compile` is asked for by a plan on disk, in place of cluster, workload and search."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from llmpq.commands.options import Planning
from llmpq.options import PlanningOptions

F = TypeVar("F", bound=Callable[..., Any])
WORKLOAD = ("batch_size", "prompt_len", "gen_len", "rate", "ttft", "tpot", "prefix_hits", "trace")
REQUEST = ("cluster", *WORKLOAD, "precisions", "engine", "constraints", "assign", "pipeline")


def plan_option(function: F) -> F:
    """Add --plan FILE, handed on as `given`."""

    def keep(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is not None:  # what is required is then in the plan
            ctx.default_map = {**(ctx.default_map or {}), "cluster": str(value)}
        return value

    told = "Carry out this plan of `llmpq plan --json`, perhaps edited, for its own cluster and workload."
    return click.option("--plan", "given", type=click.Path(path_type=Path), is_eager=True, callback=keep, help=told)(function)


def by_plan(planning: Planning, path: Path) -> Planning:
    """The options of the command with what the plan says of the request. Raises UsageError when both say it."""
    from llmpq.answers.plan_file import load_plan, options_of

    ctx = click.get_current_context()
    flags = {item.name: "/".join(item.opts) for item in ctx.command.params}
    twice = [flags[name] for name in REQUEST if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if twice:
        raise click.UsageError(f"--plan {path} says what {', '.join(twice)} would; leave them out, or edit the plan")
    plan = load_plan(path)
    options = cast(PlanningOptions, {**planning.options, **options_of(plan, path)})
    return replace(planning, cluster=plan.cluster, workload=plan.workload, options=options)
