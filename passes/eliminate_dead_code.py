"""eliminate-dead-code: nodes of the traced graph whose values nobody reads, removed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llmpq.program import Program

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True, slots=True)
class EliminateDeadCode:
    """Placeholders stay, so that every graph has the same signature; so do functions that torch.fx knows to have side effects."""

    name: ClassVar[str] = "eliminate-dead-code"
    requires: ClassVar[tuple[str, ...]] = ("graph_module",)
    provides: ClassVar[tuple[str, ...]] = ("graph_module",)

    def apply(self, program: Program) -> Program:
        from llmpq.fx.graphs import copy_graph, with_graph

        module = program.require("graph_module")
        graph = copy_graph(module)
        graph.eliminate_dead_code(_must_stay)
        return replace(program, graph_module=with_graph(module, graph, type(module).__name__))

    def verify(self, program: Program) -> Iterator[str]:
        for node in program.require("graph_module").graph.nodes:
            if not node.users and not _must_stay(node):
                yield f"nobody reads {node.name}"


def _must_stay(node: "Node") -> bool:
    return node.op in ("placeholder", "output") or (node.op == "call_function" and node.is_impure())
