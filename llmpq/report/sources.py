"""Sources of a report: an output directory, or a plan.json alone."""

from pathlib import Path

from llmpq.errors import InputError, LlmpqError
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import read_utf8, resolve
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.report.page import Report, render
from llmpq.serialize import loads

REPORT_FILE = "report.html"


def write_report(out: Path, graph: LayerGraph) -> None:
    """Write the page of a compiled model into its directory."""
    path = out / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(render(_of_output(out, graph, "")), encoding="utf-8")
    partial.replace(path)


def read_report(path: Path) -> Report:
    """Of an output directory or a plan.json. Raises InputError when it is neither."""
    from llmpq.checkpoint.output_checks import PLAN_FILE

    if path.is_dir():
        if not (path / PLAN_FILE).is_file():
            raise InputError(f"{path}: holds no {PLAN_FILE}; `llmpq compile MODEL --cluster C -o {path}` makes one")
        return _of_output(path, *_graph(path))
    plan = loads(Plan, read_utf8(path, "plan"), str(path))
    return Report(plan, *_graph(plan.model))


def _of_output(out: Path, graph: LayerGraph | None, reason: str) -> Report:
    from llmpq.checkpoint.manifest import Manifest
    from llmpq.checkpoint.output_checks import read_plan
    from llmpq.quality_loop import read_check

    return Report(read_plan(out), graph, reason, read_check(out), Manifest.read(out).engines)


def _graph(model: str | Path) -> tuple[LayerGraph | None, str]:
    """The graph of the model, or why it cannot be had."""
    try:
        return layer_graph_of(resolve(model, weights=False)), ""
    except LlmpqError as error:
        return None, str(error)
