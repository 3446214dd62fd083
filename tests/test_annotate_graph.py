"""annotate-graph: the plan, written on the nodes."""

from dataclasses import replace

import pytest

from llmpq.errors import PassError
from llmpq.fx.annotation import Annotation, annotation_of
from llmpq.passes.annotate_graph import AnnotateGraph
from llmpq.printing import format_graph_module
from llmpq.program import Program
from tests.conftest import Golden
from tests.tiny_models import program_of, tiny_model

TWO_STAGES = (("16", "w4a16"), ("w8a16", "w8a8"))


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of(tiny_model("llama"), TWO_STAGES)


def test_the_annotated_graph_of_a_llama_reads_like_this(program: Program, golden: Golden) -> None:
    golden("annotated_llama.txt", format_graph_module(AnnotateGraph().apply(program).require("graph_module")))


def test_layers_have_stage_device_layer_and_option(program: Program) -> None:
    annotated = AnnotateGraph().apply(program).require("graph_module")
    layers = [annotation_of(node) for node in annotated.graph.nodes if node.target in program.graph.layer_names]
    assert layers == [
        Annotation(0, "CPU:0", 0, "16"),
        Annotation(0, "CPU:0", 1, "w4a16"),
        Annotation(1, "CPU:1", 2, "w8a16"),
        Annotation(1, "CPU:1", 3, "w8a8"),
    ]


def test_what_is_before_the_layers_is_on_the_first_stage_and_what_is_behind_on_the_last(program: Program) -> None:
    nodes = {node.target: annotation_of(node) for node in AnnotateGraph().apply(program).require("graph_module").graph.nodes}
    assert nodes["model.embed_tokens"] == Annotation(0, "CPU:0")
    assert nodes["model.norm"] == nodes["lm_head"] == Annotation(1, "CPU:1")
    assert nodes["input_ids"] is None


def test_the_graph_that_was_given_stays_as_it_was(program: Program) -> None:
    AnnotateGraph().apply(program)
    assert all(annotation_of(node) is None for node in program.require("graph_module").graph.nodes)


def test_a_plan_for_another_number_of_layers_is_refused(program: Program) -> None:
    shorter = replace(program, graph=replace(program.graph, layer_kind=(0,) * 3, layer_names=program.graph.layer_names[:3]))
    with pytest.raises(PassError, match="the plan places layers 0 to 3; tiny has 3: plan this model"):
        AnnotateGraph().apply(shorter)


def test_a_plan_for_layers_that_the_graph_does_not_call_is_refused(program: Program) -> None:
    renamed = replace(program, graph=replace(program.graph, layer_names=tuple(f"decoder.{i}" for i in range(4))))
    with pytest.raises(PassError, match=r"calls no layer 'decoder\.0'"):
        AnnotateGraph().apply(renamed)
