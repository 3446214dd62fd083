"""The page: a plan, what is known of its times and its quality, and how to run it, as one HTML document."""

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from llmpq.costs.profile import Profile
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.planning.stage_seconds import stage_seconds
from llmpq.printing import format_cache, format_sizes, format_workload
from llmpq.quality_check import QualityCheck
from llmpq.report.front import front_section
from llmpq.report.gantt import no_schedule_section, schedule_section
from llmpq.report.how_to_run import Engines, run_section
from llmpq.report.layers import layers_section
from llmpq.report.markup import Markup, tag
from llmpq.report.measured import measured_section
from llmpq.report.memory import memory_section, patterns
from llmpq.report.quality import quality_section
from llmpq.report.words import summary_section

if TYPE_CHECKING:
    from llmpq.answers.pareto import ParetoPoint
    from llmpq.profiling.validation import Validation

SECTIONS = {
    "summary": "Summary",
    "memory": "Memory",
    "layers": "Layers",
    "schedule": "Schedule",
    "quality": "Quality",
    "run": "Run",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is made of. graph: None where the times of stages cannot be told, with the reason in `no_graph`: no chart then.

    check: what was measured after quantizing. engines: of the compiled model; None for a plan alone. profile: what the plan
    rests on, where its times were measured. validation: a run of the compiled model beside its predictions. front: what
    `llmpq pareto` found.
    """

    plan: Plan
    graph: LayerGraph | None
    no_graph: str = ""
    check: QualityCheck | None = None
    engines: Engines | None = None
    profile: Profile | None = None
    validation: "Validation | None" = None
    front: "tuple[ParetoPoint, ...]" = ()


def render(report: Report) -> str:
    """The document: self-contained, the same bytes for the same report."""
    plan, graph = report.plan, report.graph
    seconds = None if graph is None else stage_seconds(plan, graph, report.profile)
    timing = no_schedule_section(report.no_graph) if seconds is None else schedule_section(plan, seconds)
    main = tag(
        "main",
        summary_section(plan, seconds),
        memory_section(plan),
        layers_section(plan),
        timing,
        *([] if report.validation is None else [measured_section(report.validation)]),
        quality_section(plan, report.check),
        *([front_section(plan, report.front)] if report.front else []),
        run_section(plan, report.engines),
        id="main",
    )
    body = tag("body", tag("a", "Skip to the plan", href="#main", class_="skip"), patterns(), _header(report), main)
    return f'<!DOCTYPE html>\n<html lang="en">{_head(plan)}{body}</html>\n'


def _head(plan: Plan) -> Markup:
    style = Markup((files("llmpq") / "data" / "report.css").read_text("utf-8"))
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    scheme = '<meta name="color-scheme" content="light dark">'
    return tag("head", Markup(meta + scheme), tag("title", f"{plan.model}: llmpq plan"), tag("style", style))


def _header(report: Report) -> Markup:
    plan, measured = report.plan, {} if report.validation is None else {"measured": "Measured"}
    front = {"front": "Pareto front"} if report.front else {}
    links = [tag("a", name, href=f"#{identity}") for identity, name in (SECTIONS | measured | front).items()]
    stages = f"{len(plan.stages)} stage{'s' * (len(plan.stages) != 1)} on {plan.cluster.name}"
    return tag(
        "header",
        tag("h1", plan.model),
        tag("p", f"{stages}; {format_workload(plan.workload)}; {plan.compute_dtype}{format_cache(plan)}, engine {plan.engine}"),
        tag("p", format_sizes(plan), class_="note"),
        tag("nav", *links, aria_label="Sections"),
    )
