"""Rules for layers that cannot be cut apart, in the users' language."""

from collections.abc import Iterator

from llmpq.graph import LayerGraph
from llmpq.solver.rules import Rule, parse_rules


def uncut_rules(graph: LayerGraph) -> tuple[Rule, ...]:
    """Every run of layers that must stay together, as one rule: "layers[2:5].device == layers[5].device"."""
    return parse_rules(f"layers[{first}:{last}].device == layers[{last}].device" for first, last in _runs(graph.uncut))


def uncut_notice(graph: LayerGraph) -> str | None:
    """What the user is told of them; None where the graph can be cut before every layer."""
    runs = ", ".join(f"{first} to {last}" for first, last in _runs(graph.uncut))
    return f"layers {runs} stay on one device: more than the hidden state passes between them" if runs else None


def _runs(uncut: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first, last) layer of each run."""
    for layer in uncut:
        if layer - 1 not in uncut:
            last = next(end for end in range(layer, layer + len(uncut)) if end + 1 not in uncut)
            yield layer - 1, last
