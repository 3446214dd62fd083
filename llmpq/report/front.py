"""Front: the Pareto front of loss and speed as a chart and a table, with the plan of the page among its points."""

from math import expm1
from typing import TYPE_CHECKING

from llmpq.plan import Plan
from llmpq.report.markup import Markup, scrolling, section, table, tag
from llmpq.units import format_bytes

if TYPE_CHECKING:
    from llmpq.answers.pareto import ParetoPoint

WIDTH, HEIGHT, LEFT, BELOW, EDGE = 960, 300, 80, 34, 20  # pixels
TICKS = 4


def front_section(plan: Plan, front: "tuple[ParetoPoint, ...]") -> Markup:
    """`front`: by rising loss, of the same model and cluster as the plan, which need not be one of its points."""
    words = "The fastest plan at each loss: none is both slower and worse than another. The cross is the plan of this page."
    title = f"{len(front)} plans, loss and speed"
    figure = tag("figure", tag("figcaption", title), scrolling(title, _chart(title, plan, front)))
    header = ("loss, nats per token", "perplexity", "tokens/s", "memory", "layers at each precision")
    return section("front", "Pareto front", tag("p", words), figure, table("Plans of the front", header, list(map(_row, front))))


def _row(point: "ParetoPoint") -> tuple[str, ...]:
    options = point.plan.options
    counts = ", ".join(f"{options.count(name)} {name}" for name in sorted(set(options)))
    speed = f"{point.tokens_per_s:.4g}" if point.proven else f"{point.tokens_per_s:.4g}, not proven"
    return f"{point.sensitivity:.4f}", f"{expm1(point.sensitivity):+.2%}", speed, format_bytes(point.memory_bytes), counts


def _chart(label: str, plan: Plan, front: "tuple[ParetoPoint, ...]") -> Markup:
    """Loss to the right, speed upwards, both from nothing."""
    here = (plan.quality.sensitivity, plan.tokens_per_s)
    places = [(point.sensitivity, point.tokens_per_s) for point in front]
    most_loss, most_speed = (max(found) or 1.0 for found in zip(*places, here))

    def at(loss: float, speed: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - EDGE, HEIGHT - BELOW - EDGE
        return round(LEFT + loss / most_loss * across, 1), round(EDGE + (1 - speed / most_speed) * down, 1)

    dots = [tag("circle", cx=x, cy=y, r=5, class_="dot") for x, y in (at(*place) for place in places)]
    x, y = at(*here)
    cross = tag("path", d=f"M{x - 8} {y}H{x + 8}M{x} {y - 8}V{y + 8}", class_="here")
    parts = (*_axes(most_loss, most_speed), *dots, cross)
    return tag("svg", *parts, class_="front", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _axes(most_loss: float, most_speed: float) -> list[Markup]:
    bottom, made = HEIGHT - BELOW, []
    for tick in range(TICKS + 1):
        share = tick / TICKS
        x, y = LEFT + share * (WIDTH - LEFT - EDGE), EDGE + (1 - share) * (bottom - EDGE)
        made.append(tag("path", d=f"M{x:.1f} {EDGE}V{bottom}M{LEFT} {y:.1f}H{WIDTH - EDGE}", class_="grid"))
        made.append(tag("text", f"+{share * most_loss:.3g}", x=f"{x:.1f}", y=HEIGHT - 12, text_anchor="middle"))
        made.append(tag("text", f"{share * most_speed:.4g}", x=LEFT - 8, y=f"{y + 4:.1f}", text_anchor="end"))
    return made
