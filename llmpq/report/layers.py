"""Layers: the option of every layer, device by device, as coloured cells with their text."""

from collections import Counter

from llmpq.layer_option import SEPARATOR
from llmpq.plan import Plan, Stage
from llmpq.precision import PRECISIONS
from llmpq.report.markup import Markup, section, tag

COLOURS = ("16", "w8a8", "w8a16", "fp8", "w4a16", "w3a16")  # options that have a colour of their own in the style sheet


def layers_section(plan: Plan) -> Markup:
    """A list per stage in pipeline order."""
    used = "; ".join(f"{option}: {_meaning(option)}" for option in sorted(set(plan.options)))
    words = f"Each cell is a layer: its number and its precision ({used})."
    return section("layers", "Precision of every layer", tag("p", words), *(_stage(stage) for stage in plan.stages))


def _meaning(option: str) -> str:
    """The option in words, where it is one of the library's."""
    if SEPARATOR in option:
        attention, _, mlp = option.partition(SEPARATOR)
        return f"{_meaning(attention)} in the attention, {_meaning(mlp)} in the mlp"
    precision = PRECISIONS.get(option)
    if precision is None:
        return "of its own"
    if not precision.is_quantized:
        return "not quantized"
    kind = " float" if precision.kind != "int" else ""
    activations = f", {precision.activation_bits}-bit activations" if precision.activation_bits < 16 else ""
    return f"{precision.num_bits}-bit{kind} weights{activations}"


def _stage(stage: Stage) -> Markup:
    counts = ", ".join(f"{count} at {option}" for option, count in Counter(stage.options).items())
    cells = [_cell(layer, option) for layer, option in zip(stage.layers, stage.options)]
    heading = tag("h3", stage.device, " ", tag("small", counts))
    return tag("div", heading, tag("ol", *cells, class_="layers", aria_label=f"Layers on {stage.device}"), class_="device")


def _cell(layer: int, option: str) -> Markup:
    kind = f"o-{option}" if option in COLOURS else "o-other"
    return tag("li", tag("b", str(layer)), " ", option, class_=kind)
