"""Memory: a bar per device with its parts, and the same figures as a table."""

from llmpq.plan import DeviceMemory, Plan
from llmpq.report.markup import Markup, section, table, tag
from llmpq.units import format_bytes

PARTS = ("weights", "kv_cache", "activations", "embedding", "head", "free")
NAMES = {"kv_cache": "KV cache"}


def memory_section(plan: Plan) -> Markup:
    """Every device of the cluster, in its order; those that the plan leaves out are named as such."""
    bars = [_bar(memory) for memory in plan.prediction.memory]
    each = [tag("p", "Of a group of devices: on each of them.", class_="note")] if plan.ranks > 1 else []
    idle = [*each, tag("p", f"Not used: {', '.join(plan.idle)}.", class_="note")] if plan.idle else each
    details = tag("details", tag("summary", "The same in bytes"), _table(plan))
    return section("memory", "Memory", *bars, *idle, details)


def part_bytes(memory: DeviceMemory, part: str) -> int:
    return memory.capacity - memory.total if part == "free" else int(getattr(memory, part))


def part_name(part: str) -> str:
    return NAMES.get(part, part)


def _bar(memory: DeviceMemory) -> Markup:
    """A bar whose whole width is the capacity; the legend below it has its parts in the same order."""
    shown = [(part, part_bytes(memory, part)) for part in PARTS if part_bytes(memory, part) > 0]
    label = f"{memory.device}: " + ", ".join(f"{part_name(part)} {format_bytes(size)}" for part, size in shown)
    rects, done = [], 0.0
    for part, size in shown:
        width = 100 * size / memory.capacity
        rects.append(tag("rect", class_=f"m-{part}", x=f"{done:.3f}%", y="0", width=f"{width:.3f}%", height="26"))
        done += width
    legend = [tag("li", _swatch(part), f" {part_name(part)} {format_bytes(size)}") for part, size in shown]
    share = f"{memory.total / memory.capacity:.0%} of {format_bytes(memory.capacity)}"
    return tag(
        "div",
        tag("h3", memory.device, " ", tag("small", share)),
        tag("svg", *rects, class_="bar", width="100%", height="26", role="img", aria_label=label),
        tag("ul", *legend, class_="legend"),
        class_="device",
    )


def _swatch(part: str) -> Markup:
    square = tag("rect", class_=f"m-{part}", width="14", height="14")
    return tag("svg", square, width="14", height="14", aria_hidden="true")


def _table(plan: Plan) -> Markup:
    header = ("device", *map(part_name, PARTS), "capacity")
    rows = [
        (memory.device, *(f"{part_bytes(memory, part):,}" for part in PARTS), f"{memory.capacity:,}")
        for memory in plan.prediction.memory
    ]
    return table("Memory in bytes", header, rows)


def patterns() -> Markup:
    """Fills that differ by hatching as well as by colour, referred to by the style sheet."""
    marks = {
        "kv_cache": "M0 8L8 0M-2 2L2 -2M6 10L10 6",
        "activations": "M4 0V8",
        "embedding": "M0 4H8",
        "head": "M0 4H8M4 0V8",
    }
    made = [
        tag(
            "pattern",
            tag("rect", width="8", height="8", class_=f"c-{part}"),
            tag("path", d=path, class_="hatch"),
            id=f"p-{part}",
            width="8",
            height="8",
            patternUnits="userSpaceOnUse",
        )
        for part, path in marks.items()
    ]
    return tag("svg", tag("defs", *made), width="0", height="0", aria_hidden="true", class_="defs")
