"""insert-transfers: a send node where a stage ends and a recv node where the next begins, with shape and dtype."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from llmpq.errors import PassError
from llmpq.fx.annotation import KEY, Annotation, annotation_of
from llmpq.program import Program

if TYPE_CHECKING:
    from torch.fx import Graph, Node


@dataclass(frozen=True, slots=True)
class InsertTransfers:
    """The hidden state crosses a cut in the plan's compute dtype, which the costs of links are made of; the runtime moves
    what a stage sends, and a stage refuses what is not the transfer that it expects."""

    name: ClassVar[str] = "insert-transfers"
    requires: ClassVar[tuple[str, ...]] = ("compute_dtype", "stages")
    provides: ClassVar[tuple[str, ...]] = ("stages",)

    def apply(self, program: Program) -> Program:
        from llmpq.fx.graphs import copy_graph, with_graph

        stages = program.require("stages")
        graphs = [copy_graph(stage) for stage in stages]
        for source, (graph, following) in enumerate(pairwise(graphs)):
            _connect(graph, following, source, program)
        made = (with_graph(stage, graph, type(stage).__name__) for stage, graph in zip(stages, graphs))
        return replace(program, stages=tuple(made))

    def verify(self, program: Program) -> Iterator[str]:
        from llmpq.fx.transfers import recv, send, transfer_of

        stages = program.require("stages")
        sent = [[transfer_of(node) for node in stage.graph.nodes if node.target is send] for stage in stages]
        received = [[transfer_of(node) for node in stage.graph.nodes if node.target is recv] for stage in stages]
        if sent[-1] or received[0]:
            yield "the first stage receives, or the last one sends, what is of no other stage"
        for source, (left, right) in enumerate(zip(sent, received[1:])):
            if len(left) != 1 or left != right:
                found = f"stage {source} sends {_listed(left)} and stage {source + 1} receives {_listed(right)}"
                yield f"{found}; expected one transfer, the same on both sides"


def _connect(graph: "Graph", following: "Graph", source: int, program: Program) -> None:
    import torch

    from llmpq.fx.graphs import placeholders
    from llmpq.fx.transfers import HIDDEN, recv, send

    output = next(iter(reversed(graph.nodes)))
    (hidden,) = output.all_input_nodes
    entering = placeholders(following).get("hidden_states")
    if entering is None:
        raise PassError(f"insert-transfers: stage {source + 1} takes no hidden_states; run split-by-stage first")
    said = {
        "name": hidden.name,
        "source": source,
        "target": source + 1,
        "shape": (*HIDDEN, program.graph.hidden_size),
        "dtype": getattr(torch, program.require("compute_dtype")),
    }
    with graph.inserting_before(output):
        sending = graph.call_function(send, (hidden,), said)
    _annotate(sending, hidden)
    output.replace_input_with(hidden, sending)
    _receive(following, entering, recv, said)


def _receive(graph: "Graph", entering: "Node", recv: Any, said: dict[str, Any]) -> None:
    users = tuple(entering.users)
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        receiving = graph.call_function(recv, (entering,), said)
    _annotate(receiving, *users)
    for user in users:
        user.replace_input_with(entering, receiving)


def _annotate(node: "Node", *neighbours: "Node") -> None:
    """Put the node on the stage of its neighbours."""
    place = next(found for neighbour in neighbours if (found := annotation_of(neighbour)) is not None)
    node.meta[KEY] = Annotation(place.stage, place.device)


def _listed(found: list[Any]) -> str:
    return ", ".join(map(str, found)) or "nothing"
