"""Annotation: what the compiler knows of a node of the traced graph, kept in `node.meta["llmpq"]`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

KEY = "llmpq"


@dataclass(frozen=True, slots=True)
class Annotation:
    """Where a node runs; `layer` and `option` are set on decoder layers only."""

    stage: int
    device: str
    layer: int | None = None
    option: str | None = None

    def __str__(self) -> str:
        layer = "" if self.layer is None else f", layer {self.layer}, {self.option}"
        return f"stage {self.stage}, {self.device}{layer}"


def annotation_of(node: "Node") -> Annotation | None:
    """The node's annotation; None for placeholders, for the output, and before annotate-graph."""
    found: Any = node.meta.get(KEY)
    return found if isinstance(found, Annotation) else None
