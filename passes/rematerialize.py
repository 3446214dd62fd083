"""rematerialize: masks, positions and rotary values computed again in every stage, so that only the hidden state is sent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from llmpq.errors import PassError
from llmpq.fx.annotation import KEY, Annotation, annotation_of
from llmpq.program import Program

if TYPE_CHECKING:
    from torch.fx import Graph, Node


@dataclass(frozen=True, slots=True)
class Rematerialize:
    """Clones what no layer feeds into the later stages that use it, as NAME_stageK.

    A clone reads the hidden state that enters its stage where the original read the embeddings, and position_ids where it
    read input_ids, both only for shape, dtype and device. Raises PassError where their values are needed.
    """

    name: ClassVar[str] = "rematerialize"
    requires: ClassVar[tuple[str, ...]] = ("plan", "graph_module")
    provides: ClassVar[tuple[str, ...]] = ("graph_module",)

    def apply(self, program: Program) -> Program:
        from llmpq.fx.graphs import copy_graph, downstream, from_ids, with_graph

        module = program.require("graph_module")
        graph = copy_graph(module)
        behind = downstream(graph, frozenset(program.graph.layer_names))
        by_value = from_ids(graph, module, behind)
        for stage in range(1, len(program.require("plan").stages)):
            _Cloner(stage, graph, behind, by_value).run()
        return replace(program, graph_module=with_graph(module, graph, type(module).__name__))

    def verify(self, program: Program) -> Iterator[str]:
        entering: dict[int, set[str]] = {stage: set() for stage in range(1, len(program.require("plan").stages))}
        for node in program.require("graph_module").graph.nodes:
            for source in node.all_input_nodes:
                made, read = annotation_of(source), annotation_of(node)
                if made is not None and read is not None and made.stage != read.stage:
                    entering[read.stage].add(source.name)
        for stage, names in entering.items():
            if len(names) != 1:
                yield f"{', '.join(sorted(names)) or 'nothing'} enters stage {stage}, expected the hidden state alone"


class _Cloner:
    """Copies of what one stage needs of earlier stages and no layer feeds, each made once."""

    def __init__(self, stage: int, graph: "Graph", behind: set["Node"], by_value: set["Node"]) -> None:
        self._stage, self._graph, self._behind, self._by_value = stage, graph, behind, by_value
        self._clones: dict[Node, Node] = {}

    def run(self) -> None:
        from llmpq.fx.graphs import placeholders

        own = [node for node in self._graph.nodes if (found := annotation_of(node)) is not None and found.stage == self._stage]
        if not own:
            raise PassError(f"rematerialize: no node is annotated with stage {self._stage}; run annotate-graph first")
        self._annotation = Annotation(self._stage, own[0].meta[KEY].device)
        self._hidden = next(
            source for node in own for source in node.all_input_nodes if source in self._behind and source not in own
        )
        self._positions = placeholders(self._graph)["position_ids"]
        with self._graph.inserting_before(own[0]):
            for node in own:
                for source in node.all_input_nodes:
                    if source not in self._behind:
                        node.replace_input_with(source, self._clone(source))

    def _clone(self, node: "Node") -> "Node":
        if node in self._by_value:
            raise PassError(
                f"rematerialize: stage {self._stage} needs the value of {node.name}, which comes from input_ids; "
                "only the hidden state can be sent: plan a single stage"
            )
        if node.op == "placeholder":
            return node
        if node not in self._clones:
            self._clones[node] = self._copy(node)
        return self._clones[node]

    def _copy(self, node: "Node") -> "Node":
        from torch.fx import map_arg

        sources = {source: self._source(source) for source in node.all_input_nodes}
        args: Any = map_arg(node.args, sources.__getitem__)
        kwargs: Any = map_arg(node.kwargs, sources.__getitem__)
        copied = self._graph.create_node(node.op, node.target, args, kwargs, name=f"{node.name}_stage{self._stage}")
        copied.meta = {**node.meta, KEY: self._annotation}
        return copied

    def _source(self, source: "Node") -> "Node":
        """What stands for `source` here; a clone is no value of the ids, so of those it reads only the shape."""
        if source not in self._by_value:
            return self._clone(source)
        return self._positions if source.op == "placeholder" else self._hidden
