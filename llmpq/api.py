"""The Python API: a function for every question and job of the command line, with the values that it prints as JSON."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from llmpq.errors import LlmpqWarning
from llmpq.hardware.cluster import Cluster
from llmpq.options import PlanningOptions
from llmpq.plan import Plan
from llmpq.program import Program
from llmpq.solver.solution import DEFAULT_GAP
from llmpq.workload import Serving, Workload

if TYPE_CHECKING:
    from llmpq.answers.difference import Difference
    from llmpq.answers.explanation import Explanation
    from llmpq.answers.pareto import ParetoPoint
    from llmpq.answers.whatif import Outcome
    from llmpq.compiled import CompiledModel
    from llmpq.costs.profile import Profile
    from llmpq.evaluation import Evaluation
    from llmpq.planning.limits import Limit
    from llmpq.profiling.validation import Validation
    from llmpq.sensitivity import SensitivityTable
    from llmpq.simulation.percentiles import Service
    from llmpq.solver.solution import Solution

Where = Cluster | str | Path  # a cluster, a cluster file, "3xT4,1xV100-32" or "local"
SEARCH_LIMIT_S = 5.0  # of each search of an answer that plans many times


def make_plan(model: Any, cluster: Where, workload: Workload, **options: Unpack[PlanningOptions]) -> Plan:
    """The plan of a model on a cluster, from its configuration alone (`llmpq plan`).

    model: a directory, hub id, `demo`, a bundled configuration's name, or an nn.Module. Raises InfeasibleError with reasons
    and fixes when there is none. `llmpq.compiler.plan` returns the whole program behind it.
    """
    from llmpq.compiler import plan

    made: Plan = _told(plan(model, cluster, workload, **options)).require("plan")
    return made


def compile_plan(
    model: Any, plan: Path | str, out: Path | str | None = None, **options: Unpack[PlanningOptions]
) -> "CompiledModel":
    """`compile` by a plan on disk, perhaps edited by hand (`llmpq compile --plan`); it is checked and its costs derived anew.

    Raises InputError where the plan is not of this model, InfeasibleError where it does not fit its own cluster.
    """
    from llmpq.answers.plan_file import load_plan, options_of
    from llmpq.compiler import compile

    made = load_plan(Path(plan))
    both = cast(PlanningOptions, {**options, **options_of(made, Path(plan))})
    return compile(model, made.cluster, made.workload, out=out, **both)


def max_context(model: Any, cluster: Where, workload: Workload, **options: Unpack[PlanningOptions]) -> "tuple[Limit, ...]":
    """The longest context that fits beside the workload's batch, for each choice of precisions (`llmpq max-context`)."""
    from llmpq.compiler import prepare
    from llmpq.planning.limits import max_context

    return max_context(_told(prepare(model, cluster, workload, **options)))


def max_batch(model: Any, cluster: Where, workload: Workload, **options: Unpack[PlanningOptions]) -> "tuple[Limit, ...]":
    """The largest batch that fits at the workload's lengths, for each choice of precisions (`llmpq max-batch`)."""
    from llmpq.compiler import prepare
    from llmpq.planning.limits import max_batch

    return max_batch(_told(prepare(model, cluster, workload, **options)))


def whatif(
    model: Any,
    cluster: Where,
    workload: Workload,
    changes: Iterable[tuple[str, str]],
    prices: Iterable[str] = (),
    **options: Unpack[PlanningOptions],
) -> "tuple[Outcome, ...]":
    """The best plan on the cluster as it is and after each change (`llmpq whatif`).

    changes: ("add", "1xL4"), ("remove", "T4:0"), ("replace", "T4:0=L4"), ("link", "between_hosts=25 Gbit/s"); each alone.
    prices: per hour, "T4=0.35".
    """
    from llmpq.answers.cluster_changes import ClusterChange, changed, with_prices
    from llmpq.answers.whatif import whatif
    from llmpq.compiler import prepare

    before = cluster if isinstance(cluster, Cluster) else Cluster.load(cluster)
    asked = [changed(before, verb, text) for verb, text in changes]
    base, *others = with_prices((before, *(change.cluster for change in asked)), tuple(prices))
    program = _told(prepare(model, base, workload, **options))
    return whatif(program, [ClusterChange(change.words, other) for change, other in zip(asked, others, strict=True)])


def pareto(
    model: Any,
    cluster: Where,
    workload: Workload,
    points: int = 12,
    search_limit_s: float = SEARCH_LIMIT_S,
    **options: Unpack[PlanningOptions],
) -> "tuple[ParetoPoint, ...]":
    """The fastest plan at each loss of quality, from the least loss to the fastest of all (`llmpq pareto`)."""
    from llmpq.answers.pareto import pareto
    from llmpq.compiler import prepare

    return pareto(_told(prepare(model, cluster, workload, **options)), points, search_limit_s)


def explain(
    plan: "Path | str | CompiledModel", layer: int | None = None, device: str | None = None, time_limit_s: float = SEARCH_LIMIT_S
) -> "Explanation":
    """Why a plan on disk or of a compiled model is as it is, and what would buy what (`llmpq explain`); `str` of it is text."""
    from llmpq.answers.explanation import explain
    from llmpq.explaining import planned_program

    path = Path(plan) if isinstance(plan, str | Path) else plan.directory
    return explain(_told(planned_program(path)), layer=layer, device=device, time_limit_s=time_limit_s)


def diff(first: Plan, second: Plan) -> "Difference":
    """What changes from one plan to another (`llmpq diff`)."""
    from llmpq.answers.difference import difference

    return difference(first, second)


def simulate(
    model: Any,
    cluster: Where,
    workload: Serving,
    requests: int = 1000,
    trace: Path | str | None = None,
    seed: int = 0,
    **options: Unpack[PlanningOptions],
) -> "Service":
    """Requests served by a plan in simulated time, of a trace or a Poisson process at the workload's rate (`llmpq simulate`)."""
    from llmpq.compiler import plan
    from llmpq.simulation.percentiles import service
    from llmpq.simulation.planned import simulate_plan
    from llmpq.simulation.requests import poisson, read_trace

    program = _told(plan(model, cluster, workload, **options))
    arrivals = (
        poisson(workload.rate_per_s, workload.prompt_len, workload.gen_len, requests, seed)
        if trace is None
        else read_trace(Path(trace), limit=requests)
    )
    made = program.require("plan")
    return service(simulate_plan(made, program.graph, program.request.engine, arrivals, profile=program.request.profile))


def profile(
    model: Any,
    out: Path | str,
    precisions: str = "16,w8a8,w8a16,w4a16",
    *,
    engine: str = "local",
    python: str | None = None,
    quick: bool = False,
    device: str = "cpu",
    speed: float = 1.0,
    link: bool = True,
    beside: bool = False,
) -> "Profile":
    """What one layer of each kind takes on this machine, at many sizes (`llmpq profile`).

    out: the file that keeps every point as soon as it is measured; where it is there already it is gone on with.
    engine: local, or vllm in the interpreter `python`, by default the one of `make engines`.
    beside: also while another process computes, as stages on the CPU of one host do.
    """
    from llmpq.profiling.taking import take_profile

    where: dict[str, Any] = {"engine": engine, "python": python, "device": device, "beside": beside}
    return take_profile(model, Path(out), precisions, quick=quick, speed=speed, link=link, **where).profile


def validate(compiled: "CompiledModel | Path | str", profile: Path | str | None = None, *, quick: bool = False) -> "Validation":
    """What a compiled model takes on this machine beside what was predicted of it (`llmpq validate`)."""
    from llmpq.compiled import load
    from llmpq.profiling.profile_file import read_profile
    from llmpq.profiling.validation import validate

    model = load(compiled) if isinstance(compiled, str | Path) else compiled
    return validate(model, None if profile is None else read_profile(Path(profile)), quick)


def evaluate(model: Path | str, text: str, against: Path | str | None = None, max_tokens: int | None = None) -> "Evaluation":
    """Cross entropy of a text, by a compiled or an original model; with `against`, increase and divergence (`llmpq eval`)."""
    from llmpq.scoring import evaluate

    return evaluate(str(model), text, None if against is None else str(against), max_tokens=max_tokens)


def measure_sensitivity(
    model: Any,
    indicator: str = "fisher",
    precisions: str = "16,w8a8,w8a16,w4a16",
    granularity: str = "layer",
    text: str | None = None,
) -> "SensitivityTable":
    """The expected increase of the loss, nats per token, of each layer at each precision (`llmpq sensitivity`).

    text: a file, .jsonl file or dataset:NAME; a bundled one by default. What was measured once is kept and not measured again.
    """
    from llmpq.layer_option import parse_options
    from llmpq.measuring import sensitivity_of

    options = parse_options(precisions, granularity)
    return sensitivity_of(model, indicator, options, text, _warn, lambda what, done, total: None)


def solve(problem: Path | str, gap: float = DEFAULT_GAP, time_limit_s: float | None = None) -> "Solution":
    """The best assignment of a bare problem on disk (llmpq-problem-2) and a bound of all (`llmpq solve`)."""
    from llmpq.solver.problem import load_problem
    from llmpq.solver.solve import solve

    return solve(load_problem(Path(problem)), gap=gap, time_limit_s=time_limit_s)


def write_report(
    plan: Path | str,
    out: Path | str,
    profile: Path | str | None = None,
    validation: Path | str | None = None,
    pareto: Path | str | None = None,
) -> Path:
    """One self-contained HTML page about a compiled model or a plan on disk (`llmpq report`); returns its path.

    profile: the file that the plan rests on; validation, pareto: what those commands printed as JSON.
    """
    from llmpq.report.page import render
    from llmpq.report.sources import read_report

    path = Path(out)
    given = (None if file is None else Path(file) for file in (profile, validation, pareto))
    path.write_text(render(read_report(Path(plan), *given)), encoding="utf-8")
    return path


def _warn(text: str) -> None:
    warnings.warn(text, LlmpqWarning, stacklevel=4)


def _told(program: Program) -> Program:
    """The program, its notices given as warnings."""
    for text in dict.fromkeys((*program.request.cluster.notices, *program.notices)):
        warnings.warn(text, LlmpqWarning, stacklevel=3)
    return program
