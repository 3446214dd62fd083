"""A scatter plot as SVG, the vertical axis logarithmic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 460, 80, 20, 150, 60
COLOURS = (
    "#222222",
    "#888888",
    "#0072b2",
    "#56b4e9",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#005f45",
    "#8a4f7d",
    "#bbbbbb",
)


@dataclass(frozen=True, slots=True)
class Point:
    """`error`: one standard error of y."""

    series: str
    x: float
    y: float
    error: float


def plot(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """The points with bars of two standard errors; those at or below zero cannot be shown and are left out."""
    shown = [point for point in points if point.y > 0]
    low, high = floor(log10(min(point.y for point in shown))), ceil(log10(max(point.y for point in shown)))
    left, right = min(point.x for point in shown), max(point.x for point in shown)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + 10 + (x - left) / ((right - left) or 1.0) * (WIDTH - LEFT - RIGHT - 20)
        down = TOP + (high - log10(max(y, 10.0**low))) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)
        return across, down

    series = list(dict.fromkeys(point.series for point in shown))
    parts = [_axis(at, low, high, left, right), _labels(x_label, y_label)]
    for point in shown:
        colour = COLOURS[series.index(point.series) % len(COLOURS)]
        (x, y), (_, upper), (_, lower) = (
            at(point.x, point.y),
            at(point.x, point.y + 2 * point.error),
            at(point.x, point.y - 2 * point.error),
        )
        parts.append(
            f'<line x1="{x:.1f}" y1="{upper:.1f}" x2="{x:.1f}" y2="{lower:.1f}" stroke="{colour}" stroke-opacity="0.5"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.8"/>')
    for index, name in enumerate(series):
        y = TOP + 20 * index + 10
        parts.append(f'<circle cx="{WIDTH - RIGHT + 20}" cy="{y}" r="4" fill="{COLOURS[index % len(COLOURS)]}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 30}" y="{y + 4}">{name}</text>')
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
    return f'{head}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _axis(at: Callable[[float, float], tuple[float, float]], low: int, high: int, left: float, right: float) -> str:
    lines = []
    for power in range(low, high + 1):
        _, y = at(left, 10.0**power)
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for step in range(6):
        value = left + (right - left) * step / 5
        x, _ = at(value, 10.0**low)
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:.0f}</text>')
    return "\n".join(lines)


def _labels(x_label: str, y_label: str) -> str:
    middle = (HEIGHT - BOTTOM + TOP) / 2
    return (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 15}" text-anchor="middle">{x_label}</text>\n'
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">{y_label}</text>'
    )
