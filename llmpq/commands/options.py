"""Options that `compile` and `plan` share, and what they become."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import click

from llmpq.commands import completions
from llmpq.commands.output import output_options
from llmpq.commands.workload import WORKLOAD_OPTIONS, workload_of
from llmpq.errors import InputError
from llmpq.hardware.cluster import Cluster
from llmpq.options import MOST_REPLICAS, Options, PlanningOptions
from llmpq.passmanager import Observer, Pass
from llmpq.pipelines import Pipelines, names_of, pipelines
from llmpq.printing import format_program
from llmpq.program import MOST_RANKS, Program
from llmpq.suggest import did_you_mean
from llmpq.workload import Workload

F = TypeVar("F", bound=Callable[..., Any])


class Share(click.types.FloatParamType):
    """A share of one, as 0.02 for 2 %."""

    def fail(self, message: str, param: click.Parameter | None = None, ctx: click.Context | None = None) -> NoReturn:
        super().fail(f"{message.removesuffix('.')}; write 2 % as 0.02", param, ctx)


_OPTIONS = (
    click.option(
        "--cluster", "-c", "cluster", required=True, metavar="C", help='A cluster file, or "3xT4,1xV100-32", or "local".'
    ),
    *WORKLOAD_OPTIONS,
    click.option("--max-ppl-increase", type=Share(), help="Quality target: 0.02 allows 2 % more perplexity (the default)."),
    click.option("--sensitivity-budget", type=float, help="Quality target in nats per token."),
    click.option("--theta", type=float, help="Instead of a target: seconds per nat per token in the objective."),
    click.option("--precisions", default="16,w8a8,w8a16,w4a16", show_default=True, help="What layers may be kept at."),
    click.option(
        "--granularity", default="layer", show_default=True, help="layer, or part: attention and mlp may differ in precision."
    ),
    click.option(
        "--engine", default="local", show_default=True, shell_complete=completions.engines, help="What will run the plan."
    ),
    click.option("--constraint", "constraints", multiple=True, metavar="RULE", help='For instance "layers[0:2].bits >= 8".'),
    click.option("--calibration", type=click.Path(dir_okay=False), help="A text for the indicator; a bundled one by default."),
    click.option(
        "--quantizer",
        default="auto",
        show_default=True,
        shell_complete=completions.quantizers,
        help="gptq, rtn (round to nearest) or auto: gptq if it can.",
    ),
    click.option("--tune", type=click.Path(), help="The text on which quality is checked; a bundled one by default."),
    click.option("--report", type=click.Path(), help="A text measured once, at the end; a bundled one by default."),
    click.option("--quality-check/--no-quality-check", default=True, help="Measure quality; plan again if it breaks the target."),
    click.option(
        "--indicator",
        default="auto",
        show_default=True,
        shell_complete=completions.indicators,
        help="Sensitivity: fisher, variance, hessian, measured, random, prior.",
    ),
    click.option("--sensitivity", type=click.Path(), help="A sensitivity table to use instead of an indicator."),
    click.option("--profile", type=click.Path(dir_okay=False), help="Times of a machine, as `llmpq profile` measured them."),
    click.option(
        "--assign",
        default="assign-joint",
        show_default=True,
        shell_complete=completions.assignments,
        help="The assignment pass: assign-joint or a baseline.",
    ),
    click.option("--passes", "pipeline", metavar="SPEC", help='All passes, such as "derive-costs,…,assign-joint{gap=1e-4}".'),
    click.option("--extra-pass", "passes", multiple=True, metavar="PASS", help="A lowering pass of your own, module:Class."),
    click.option("--gap", type=float, default=1e-3, show_default=True, help="Relative optimality gap at which the search stops."),
    click.option(
        "--replicas", type=click.IntRange(1, MOST_REPLICAS), default=1, show_default=True, help="The most pipelines of the plan."
    ),
    click.option("--queue/--no-queue", default=False, help="Sequences of a batch may wait while others are in the cache."),
    click.option(
        "--kv-precision", default="16", show_default=True, help="Of the KV cache: 16, int8, fp8, or auto: the fastest plan."
    ),
    click.option(
        "--tensor-parallel",
        type=click.IntRange(1, MOST_RANKS),
        metavar="N",
        help="The most devices of a group that splits each layer; by default 8 with --engine vllm, which alone has groups.",
    ),
    click.option("--time-limit", type=float, default=60.0, show_default=True, help="Seconds of search."),
    click.option("--print-before", multiple=True, metavar="PASS", help="Print the program before this pass (or all), on stderr."),
    click.option("--print-after", multiple=True, metavar="PASS", help="The same after it."),
    click.option("--stop-after", metavar="PASS", help="Stop behind this pass and print the program; nothing is written."),
    output_options,
)


def planning_options(function: F) -> F:
    """Add every option of planning to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class Planning:
    """The values of the shared options, as the compiler takes them; `last`: the pass to go to where that is beyond the plan."""

    cluster: Cluster | str
    workload: Workload
    options: PlanningOptions
    observer: Observer
    before: Observer
    last: str | None

    @property
    def title(self) -> str:
        """What a terminal is told while the search goes on."""
        return f"planning, at most {self.options['time_limit_s']:g} s of search"

    @staticmethod
    def of(values: dict[str, Any]) -> "Planning":
        given = {name: value for name, value in values.items() if name in PlanningOptions.__annotations__}
        options = cast(PlanningOptions, {**given, "time_limit_s": values["time_limit"]})
        passes = pipelines(Options(**options))
        before, after = (_known(flag, values[flag], passes) for flag in ("print_before", "print_after"))
        return Planning(
            cluster=values["cluster"],
            workload=workload_of(values),
            options=options,
            observer=printer("after", after),
            before=printer("before", before),
            last=values["stop_after"] or _beyond_the_plan({*before, *after}, passes),
        )


def printer(when: str, names: tuple[str, ...]) -> Observer:
    """An observer that prints the program on stderr at the passes named (`all`: at each)."""

    def observe(item: Pass, program: Program) -> None:
        if not {"all", *names_of(item)}.isdisjoint(names):
            click.echo(f"== {when} {item.name}\n{format_program(program)}", err=True)

    return observe


def _known(option: str, names: tuple[str, ...], passes: Pipelines) -> tuple[str, ...]:
    """The names, each of a pass in the pipeline or `all`; else InputError."""
    known = [name for item in (*passes.planning, *passes.lowering) for name in dict.fromkeys(names_of(item))]
    for name in names:
        if name not in ("all", *known):
            flag = option.replace("_", "-")
            raise InputError(
                f"--{flag} {name!r}: no such pass in the pipeline; it has {', '.join(known)}{did_you_mean(name, known)}"
            )
    return names


def _beyond_the_plan(names: set[str], passes: Pipelines) -> str | None:
    """The last lowering pass that is to be printed: what it prints must first be made."""
    return next((item.name for item in reversed(passes.lowering) if not names.isdisjoint(names_of(item))), None)
