"""Sources of a report: an output directory, or a plan.json alone."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.answers.plan_file import load_plan
from llmpq.costs.profile import Profile
from llmpq.errors import LlmpqError
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import read_utf8, resolve
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.report.page import Report, render
from llmpq.serialize import loads

if TYPE_CHECKING:
    from llmpq.answers.pareto import ParetoPoint
    from llmpq.profiling.validation import Validation

REPORT_FILE = "report.html"


def write_report(out: Path, graph: LayerGraph, profile: Profile | None = None) -> None:
    """Write the page of a compiled model into its directory. profile: what the plan rests on."""
    path = out / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(render(_with_output(Report(load_plan(out), graph, profile=profile), out)), encoding="utf-8")
    partial.replace(path)


def read_report(path: Path, profile: Path | None = None, validation: Path | None = None, pareto: Path | None = None) -> Report:
    """Of an output directory or a plan.json. profile: the file that the plan rests on; validation, pareto: what `llmpq validate`
    and `llmpq pareto` printed as JSON. Raises InputError for files that are none of these, or a profile of another engine."""
    from llmpq.profiling.profile_file import read_profile

    plan = load_plan(path)
    measured = None if profile is None else read_profile(profile, plan.engine)
    graph, reason = _graph(path if path.is_dir() else plan.model, plan, measured)
    run, front = _validation(validation), _front(pareto)
    report = Report(plan, graph, reason, profile=measured, validation=run, front=front)
    return _with_output(report, path) if path.is_dir() else report


def _validation(path: Path | None) -> "Validation | None":
    from llmpq.profiling.validation import Validation

    return None if path is None else loads(Validation, read_utf8(path, "validation"), str(path))


def _front(path: Path | None) -> "tuple[ParetoPoint, ...]":
    from llmpq.answers.pareto import ParetoPoint

    return () if path is None else loads(tuple[ParetoPoint, ...], read_utf8(path, "Pareto front"), str(path))


def _with_output(report: Report, out: Path) -> Report:
    from llmpq.checkpoint.manifest import Manifest
    from llmpq.quality_loop import read_check

    return replace(report, check=read_check(out), engines=Manifest.read(out).engines)


def _graph(model: str | Path, plan: Plan, profile: Profile | None) -> tuple[LayerGraph | None, str]:
    """The graph of the model, or why the times of its stages cannot be told."""
    if profile is None and "measured" in plan.prediction.provenance:
        return None, "the plan rests on a profile; give it by --profile FILE"
    try:
        return layer_graph_of(resolve(model, weights=False)).with_cache(plan.kv_precision), ""
    except LlmpqError as error:
        return None, str(error)
