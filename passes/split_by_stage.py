"""split-by-stage: the annotated graph cut into one GraphModule per stage."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from llmpq.errors import PassError
from llmpq.fx.annotation import annotation_of
from llmpq.program import Program

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node


@dataclass(frozen=True, slots=True)
class SplitByStage:
    """Stages take (input_ids or hidden_states, attention_mask, position_ids, past_key_values) and return hidden state or logits.

    Submodules keep the model's paths, so that state dicts have the checkpoint's names. Raises PassError when anything but
    the hidden state of the stage before would cross a cut.
    """

    name: ClassVar[str] = "split-by-stage"
    requires: ClassVar[tuple[str, ...]] = ("plan", "graph_module")
    provides: ClassVar[tuple[str, ...]] = ("stages",)

    def apply(self, program: Program) -> Program:
        from torch.fx.passes.split_module import split_module

        module = program.require("graph_module")
        numbers = {node: _stage_of(node) for node in module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")}
        count = len(program.require("plan").stages)
        crossing = tuple(_crossing(stage, numbers) for stage in range(1, count))
        split = split_module(module, module, numbers.__getitem__, keep_original_order=True, keep_original_node_name=True)
        parts = (split.get_submodule(f"submod_{stage}").graph for stage in range(count))
        stages = tuple(_restore(part, module, hidden) for part, hidden in zip(parts, (None, *crossing), strict=True))
        return replace(program, stages=stages)

    def verify(self, program: Program) -> Iterator[str]:
        from llmpq.frontend.tracing import INPUTS

        for index, (stage, planned) in enumerate(zip(program.require("stages"), program.require("plan").stages, strict=True)):
            nodes = tuple(stage.graph.nodes)
            inputs = tuple(node.target for node in nodes if node.op == "placeholder")
            expected = ("hidden_states" if index else INPUTS[0], *INPUTS[1:])
            if inputs != expected:
                yield f"stage {index} takes {', '.join(inputs)}, expected {', '.join(expected)}"
            layers = [node.target for node in nodes if node.target in program.graph.layer_names]
            if layers != [program.graph.layer_names[layer] for layer in planned.layers]:
                yield f"stage {index} runs {', '.join(layers) or 'no layer'}, not layers {list(planned.layers)} of the plan"


def _stage_of(node: "Node") -> int:
    found = annotation_of(node)
    if found is None:
        raise PassError(f"split-by-stage: node {node.name} has no annotation; run annotate-graph first")
    return found.stage


def _crossing(stage: int, numbers: dict["Node", int]) -> "Node":
    """The hidden state: the one value that enters `stage`, made by the stage before it."""
    entering = set(_entering(stage, numbers))
    hidden = [node for node, number in numbers.items() if node in entering and number == stage - 1]
    extra = sorted(node.name for node in entering.difference(hidden[-1:]))
    if extra or not hidden:
        entry = f"would enter stage {stage} beside the hidden state of stage {stage - 1}"
        raise PassError(f"split-by-stage: {', '.join(extra) or 'nothing'} {entry}; run rematerialize first")
    return hidden[-1]


def _entering(stage: int, numbers: dict["Node", int]) -> Iterator["Node"]:
    for node, number in numbers.items():
        for source in node.all_input_nodes if number == stage else ():
            if numbers.get(source, stage) != stage or (source.op == "placeholder" and source.target == "input_ids"):
                yield source


def _restore(part: Any, module: "GraphModule", hidden: "Node | None") -> "GraphModule":
    """The part with the uniform signature, with the model's own paths, and with parameters it reads itself (`get_attr`)."""
    from torch.fx import Graph

    from llmpq.frontend.tracing import INPUTS
    from llmpq.fx.graphs import with_graph

    originals = {node.name: node for node in module.graph.nodes}
    graph = Graph()
    inputs = {name: graph.placeholder(name) for name in ("hidden_states" if hidden else INPUTS[0], *INPUTS[1:])}
    copies: dict[Node, Node] = {}
    for node in part.nodes:
        original = originals.get(node.target if node.op == "placeholder" else node.name)
        if node.op == "placeholder" and original is not None:
            copies[node] = inputs["hidden_states"] if original is hidden else _input(original, graph, inputs)
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "call_module" and original is not None:
                copies[node].target = original.target
    return with_graph(module, graph, type(module).__name__)


def _input(original: "Node", graph: "Graph", inputs: dict[str, "Node"]) -> "Node":
    return graph.get_attr(str(original.target)) if original.op == "get_attr" else inputs[str(original.target)]
