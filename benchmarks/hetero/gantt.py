"""Gantt: stages over time as predicted and as measured, two charts on one scale in a file of their own."""

from collections.abc import Mapping, Sequence

from llmpq.report.gantt import WIDTH, chart
from llmpq.report.markup import Markup, tag
from llmpq.runtime.simulate import Span

TITLE = 24  # pixels above a chart
STYLE = (
    "svg{background:#fff;font:13px system-ui,sans-serif}text{fill:#1b1f24}.in{text-anchor:middle;font-size:12px}"
    ".grid{stroke:#d0d7de;fill:none}.g0{fill:#5b8fd6}.g1{fill:#a9c6ee}.g0,.g1{stroke:#fff;stroke-width:.5}.send{fill:#b5651d}"
)


def drawing(charts: Mapping[str, Sequence[Span]], names: Sequence[str]) -> Markup:
    """An SVG of its own; `charts`: title -> spans of the stages, whose devices are `names`."""
    end_s = max(span.end_s for spans in charts.values() for span in spans)
    height = 34 * len(names) + 26 + TITLE
    parts = [tag("style", Markup(STYLE))]
    for index, (title, spans) in enumerate(charts.items()):
        drawn = tag("svg", chart(title, names, spans, end_s), y=height * index + TITLE, height=height - TITLE, width=WIDTH)
        parts += [tag("text", title, x=0, y=height * index + 16), drawn]
    whole = f"0 0 {WIDTH} {height * len(charts)}"
    return tag("svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=whole, width=WIDTH)


def busy(spans: Sequence[Span], stages: int, seconds: float) -> list[float]:
    """The share of the time that each stage computes; what is missing to 1 is its bubble."""
    return [sum(span.computed_s - span.start_s for span in spans if span.stage == stage) / seconds for stage in range(stages)]


def beginning(spans: Sequence[Span], actions: int) -> list[Span]:
    """The first so many actions of every stage."""
    stages = sorted({span.stage for span in spans})
    return [
        span
        for stage in stages
        for span in sorted((s for s in spans if s.stage == stage), key=lambda span: span.start_s)[:actions]
    ]
