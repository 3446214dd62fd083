"""Sources of a report: an output directory, or a plan.json alone."""

from dataclasses import replace
from pathlib import Path

from llmpq.answers.plan_file import load_plan
from llmpq.costs.profile import Profile
from llmpq.errors import LlmpqError
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import resolve
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.report.page import Report, render

REPORT_FILE = "report.html"


def write_report(out: Path, graph: LayerGraph, profile: Profile | None = None) -> None:
    """Write the page of a compiled model into its directory. profile: what the plan rests on."""
    path = out / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(render(_with_output(Report(load_plan(out), graph, profile=profile), out)), encoding="utf-8")
    partial.replace(path)


def read_report(path: Path, profile: Path | None = None) -> Report:
    """Of an output directory or a plan.json; profile: the file that the plan rests on. Raises InputError when it is neither, or
    the profile is of another engine."""
    from llmpq.profiling.profile_file import read_profile

    plan = load_plan(path)
    measured = None if profile is None else read_profile(profile, plan.engine)
    graph, reason = _graph(path if path.is_dir() else plan.model, plan, measured)
    report = Report(plan, graph, reason, profile=measured)
    return _with_output(report, path) if path.is_dir() else report


def _with_output(report: Report, out: Path) -> Report:
    from llmpq.checkpoint.manifest import Manifest
    from llmpq.quality_loop import read_check

    return replace(report, check=read_check(out), engines=Manifest.read(out).engines)


def _graph(model: str | Path, plan: Plan, profile: Profile | None) -> tuple[LayerGraph | None, str]:
    """The graph of the model, or why the times of its stages cannot be told."""
    if profile is None and "measured" in plan.prediction.provenance:
        return None, "the plan rests on a profile; give it by --profile FILE"
    try:
        return layer_graph_of(resolve(model, weights=False)), ""
    except LlmpqError as error:
        return None, str(error)
