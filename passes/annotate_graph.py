"""annotate-graph: stage, device, layer and option of the plan, written on the nodes of the traced graph."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llmpq.errors import PassError
from llmpq.fx.annotation import KEY, Annotation, annotation_of
from llmpq.program import Program

if TYPE_CHECKING:
    from torch.fx import Node


@dataclass(frozen=True, slots=True)
class AnnotateGraph:
    """Layers get what the plan says; every other node the last stage of what it depends on, the first if that is nothing."""

    name: ClassVar[str] = "annotate-graph"
    requires: ClassVar[tuple[str, ...]] = ("plan", "graph_module")
    provides: ClassVar[tuple[str, ...]] = ("graph_module",)

    def apply(self, program: Program) -> Program:
        from llmpq.fx.graphs import copy_graph, with_graph

        module = program.require("graph_module")
        layers = _layer_annotations(program)
        devices = tuple(stage.device for stage in program.require("plan").stages)
        graph = copy_graph(module)
        for node in graph.nodes:
            if node.op not in ("placeholder", "output"):
                layer = layers.pop(node.target, None) if node.op == "call_module" else None
                node.meta[KEY] = layer or _inherited(node, devices)
        if layers:
            raise PassError(
                f"annotate-graph: the traced graph calls no layer {min(layers)!r}, which the plan places; trace the planned model"
            )
        return replace(program, graph_module=with_graph(module, graph, type(module).__name__))

    def verify(self, program: Program) -> Iterator[str]:
        layers = _layer_annotations(program)
        for node in program.require("graph_module").graph.nodes:
            found = annotation_of(node)
            if node.op in ("placeholder", "output"):
                continue
            if found is None:
                yield f"{node.name} has no annotation"
            elif (wanted := layers.get(str(node.target), found)) != found:
                yield f"{node.name} is annotated with {found}, the plan says {wanted}"
            elif any(source.stage > found.stage for source in map(annotation_of, node.all_input_nodes) if source is not None):
                yield f"{node.name} of stage {found.stage} reads what a later stage makes"


def _layer_annotations(program: Program) -> dict[str, Annotation]:
    plan, names = program.require("plan"), program.graph.layer_names
    placed = [layer for stage in plan.stages for layer in stage.layers]
    if placed != list(range(len(names))):
        found = f"layers {placed[0]} to {placed[-1]}"
        raise PassError(f"annotate-graph: the plan places {found}; {program.graph.model} has {len(names)}: plan this model")
    apart = next((stage for stage in plan.stages if stage.first_layer in program.graph.uncut), None)
    if apart is not None:
        layer = apart.first_layer
        raise PassError(
            f"annotate-graph: the plan cuts {program.graph.model} before layer {layer}, which reads more than the hidden state "
            f"of layer {layer - 1}; plan with the constraint layers[{layer - 1}].device == layers[{layer}].device"
        )
    return {
        names[layer]: Annotation(index, stage.device, layer, option)
        for index, stage in enumerate(plan.stages)
        for layer, option in zip(stage.layers, stage.options)
    }


def _inherited(node: "Node", devices: tuple[str, ...]) -> Annotation:
    sources = (annotation_of(source) for source in node.all_input_nodes)
    stage = max((source.stage for source in sources if source is not None), default=0)
    return Annotation(stage, devices[stage])
