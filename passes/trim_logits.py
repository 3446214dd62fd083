"""trim-logits: the head computes the positions that somebody wants: the last of each sequence, all of them when scoring."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.errors import PassError
from llmpq.program import Program


@dataclass(frozen=True, slots=True)
class TrimLogits:
    """Puts `llmpq.fx.ops.wanted_positions` before the head: a prefill over a vocabulary of 128 k would else fill the memory."""

    name: ClassVar[str] = "trim-logits"
    requires: ClassVar[tuple[str, ...]] = ("graph_module",)
    provides: ClassVar[tuple[str, ...]] = ("graph_module",)

    def apply(self, program: Program) -> Program:
        from llmpq.fx.annotation import KEY
        from llmpq.fx.graphs import copy_graph, placeholders, with_graph
        from llmpq.fx.ops import wanted_positions

        module = program.require("graph_module")
        if not program.graph.generates:
            return program  # an encoder gives every position
        graph = copy_graph(module)
        head = next((node for node in graph.nodes if node.op == "call_module" and node.target == program.graph.head), None)
        if head is None:
            raise PassError(f"trim-logits: the traced graph calls no head {program.graph.head!r}; trace the planned model")
        hidden = head.args[0]
        with graph.inserting_before(head):
            trimmed = graph.call_function(wanted_positions, (hidden, placeholders(graph)["past_key_values"]))
        if KEY in head.meta:
            trimmed.meta[KEY] = head.meta[KEY]
        head.replace_input_with(hidden, trimmed)
        return replace(program, graph_module=with_graph(module, graph, type(module).__name__))

    def verify(self, program: Program) -> Iterator[str]:
        from llmpq.fx.ops import wanted_positions

        for node in program.require("graph_module").graph.nodes if program.graph.generates else ():
            if node.op == "call_module" and node.target == program.graph.head and node.args[0].target is not wanted_positions:
                yield f"the head {node.name} reads every position"
