"""Gantt charts: stages as rows, micro-batches as bars over seconds, with a table of the same figures."""

from collections.abc import Sequence

from llmpq.plan import Plan
from llmpq.planning.stage_seconds import StageSeconds
from llmpq.report.markup import Markup, scrolling, section, table, tag
from llmpq.report.spans import MOST, ROUNDS, decode_spans, prefill_micro_batches, prefill_spans
from llmpq.report.words import generates
from llmpq.runtime.simulate import Span
from llmpq.units import format_seconds
from llmpq.workload import Serving

WIDTH, LEFT, ROW, AXIS = 960, 110, 34, 26  # pixels
TICKS = 4
WIDE = 20.0  # pixels that a label needs


def schedule_section(plan: Plan, seconds: StageSeconds) -> Markup:
    """Prefill and decode of a batch, or steps of serving at full load."""
    words = tag("p", "Bars are batches being computed; the thin ends behind them are results on their way to the next device.")
    prefill = [] if isinstance(plan.workload, Serving) else [_prefill(plan, seconds)]
    decode = [_decode(plan, seconds)] if generates(plan) else []
    return section("schedule", "Schedule", words, *prefill, *decode, _table(plan, seconds))


def no_schedule_section(reason: str) -> Markup:
    return section("schedule", "Schedule", tag("p", f"There is no chart: {reason}.", class_="note"))


def _prefill(plan: Plan, seconds: StageSeconds) -> Markup:
    count = prefill_micro_batches(plan)
    drawn = f"the first {MOST} of {count}" if count > MOST else f"all {count}"
    title = f"Prefill: {drawn} micro-batches of {plan.pipeline.prefill_micro_batch} prompts"
    return _figure(title, plan, prefill_spans(plan, seconds))


def _decode(plan: Plan, seconds: StageSeconds) -> Markup:
    if isinstance(plan.workload, Serving):
        load = plan.load
        title = f"Serving at full load: {ROUNDS} steps of each of {load.in_flight} batches in flight, {load.running} sequences"
    else:
        title = f"Decode: {ROUNDS} tokens of each micro-batch of {plan.pipeline.decode_micro_batch} sequences"
    return _figure(title, plan, decode_spans(plan, seconds))


def _figure(title: str, plan: Plan, spans: tuple[Span, ...]) -> Markup:
    label = f"{title}, {format_seconds(max(span.end_s for span in spans))} in all"
    names = [stage.device for stage in plan.stages]
    return tag("figure", tag("figcaption", title), scrolling(title, chart(label, names, spans)))


def chart(label: str, names: Sequence[str], spans: Sequence[Span], end_s: float | None = None) -> Markup:
    """An SVG of stages by their names, up to `end_s`, the end of the last span by default; `label` says what it shows."""
    end = max(span.end_s for span in spans) if end_s is None else end_s
    scale = (WIDTH - LEFT - 10) / end
    height = ROW * len(names) + AXIS
    rows = [tag("text", name, x=0, y=ROW * row + 22) for row, name in enumerate(names)]
    bars = [bar for span in spans for bar in _bars(span, scale)]
    parts = (*_axis(end, scale, height), *rows, *bars)
    return tag("svg", *parts, class_="gantt", viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)


def _bars(span: Span, scale: float) -> list[Markup]:
    """The bar, its end for sending where there is one, its label where it has room."""
    x, width, sent = LEFT + span.start_s * scale, (span.computed_s - span.start_s) * scale, (span.end_s - span.computed_s) * scale
    top, kind = ROW * span.stage + 4, f"g{int(span.action[1:]) % 2}"
    made = [tag("rect", class_=kind, x=_pixel(x), y=top, width=_pixel(width), height=ROW - 8)]
    if sent >= 0.05:
        made.append(tag("rect", class_="send", x=_pixel(x + width), y=top + 9, width=_pixel(sent), height=ROW - 26))
    if width >= WIDE:
        made.append(tag("text", span.action, class_="in", x=_pixel(x + width / 2), y=top + 17))
    return made


def _axis(end: float, scale: float, height: int) -> list[Markup]:
    made = []
    for tick in range(TICKS + 1):
        seconds = end * tick / TICKS
        x = LEFT + seconds * scale
        made.append(tag("path", d=f"M{_pixel(x)} 0V{height - AXIS}", class_="grid"))
        anchor = "end" if tick == TICKS else "start" if tick == 0 else "middle"
        name = format_seconds(seconds) if tick else "0"
        made.append(tag("text", name, x=_pixel(x), y=height - 8, text_anchor=anchor))
    return made


def _table(plan: Plan, seconds: StageSeconds) -> Markup:
    """Seconds per micro-batch of each stage, and how busy decoding keeps it."""
    columns: list[tuple[float, ...]] = [seconds.decode, seconds.decode_link]
    header: tuple[str, ...] = ("device", "step", "sending")
    if not isinstance(plan.workload, Serving):
        columns = [seconds.prefill, seconds.prefill_link, *columns]
        header = ("device", "prefill", "sending", "decode", "sending")
    rows = [
        (stage.device, *(format_seconds(column[j]) if column[j] else "–" for column in columns))
        for j, stage in enumerate(plan.stages)
    ]
    return table("Time of one batch", header, rows)


def _pixel(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
