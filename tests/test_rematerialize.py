"""rematerialize: every stage computes its own masks and rotary values from the hidden state that enters it."""

import operator
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import fx

from llmpq.errors import PassError
from llmpq.fx.annotation import annotation_of
from llmpq.fx.graphs import copy_graph, with_graph
from llmpq.passes.annotate_graph import AnnotateGraph
from llmpq.passes.rematerialize import Rematerialize
from llmpq.printing import format_graph_module
from llmpq.program import Program
from tests.conftest import Golden
from tests.tiny_models import CONFIGS, calls, program_of, run, tiny_model

THREE_STAGES = (("16",), ("16", "16"), ("16",))


def rematerialized(family: str, stages: Sequence[Sequence[str]] = THREE_STAGES) -> tuple[Program, Program]:
    program = AnnotateGraph().apply(program_of(tiny_model(family), stages))
    return program, Rematerialize().apply(program)


def crossings(module: fx.GraphModule) -> set[tuple[str, int]]:
    """(name, stage) of every value that enters a stage from another one."""
    return {
        (source.name, user.stage)
        for node in module.graph.nodes
        for source in node.all_input_nodes
        if (user := annotation_of(node)) is not None and (made := annotation_of(source)) is not None and made.stage != user.stage
    }


@pytest.mark.parametrize("family", CONFIGS)
def test_only_one_value_enters_each_later_stage(family: str) -> None:
    before, after = rematerialized(family)
    assert len(crossings(before.require("graph_module"))) > 2
    assert [stage for _, stage in sorted(crossings(after.require("graph_module")), key=operator.itemgetter(1))] == [1, 2]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("padded", [False, True], ids=["equal lengths", "left padding"])
def test_the_rewritten_graph_computes_the_same_bit_for_bit(family: str, padded: bool) -> None:
    before, after = rematerialized(family)
    inputs = calls(padded)
    pairs = zip(*(run([program.require("graph_module")], program.graph, inputs) for program in (before, after)))
    assert all(torch.equal(left, right) for left, right in pairs)


def test_a_single_stage_is_left_as_it_is() -> None:
    before, after = rematerialized("llama", [["16"] * 4])
    assert str(after.require("graph_module").graph) == str(before.require("graph_module").graph)


def test_the_rewritten_graph_of_a_gemma_reads_like_this(golden: Golden) -> None:
    golden("rematerialized_gemma3.txt", format_graph_module(rematerialized("gemma3")[1].require("graph_module")))


def test_a_layer_that_needs_the_embeddings_themselves_is_refused() -> None:
    program, _ = rematerialized("llama")
    module = program.require("graph_module")
    graph = copy_graph(module)
    nodes = {node.target: node for node in graph.nodes}
    last = nodes["model.layers.3"]
    with graph.inserting_before(last):
        added = graph.call_function(operator.add, (last.args[0], nodes["model.embed_tokens"]))
    added.meta = dict(last.meta)
    last.args = (added, *last.args[1:])
    with pytest.raises(PassError, match="stage 2 needs the value of model_embed_tokens, which comes from input_ids"):
        Rematerialize().apply(replace(program, graph_module=with_graph(module, graph, "Skipping")))


def test_without_annotations_the_remedy_is_named() -> None:
    with pytest.raises(PassError, match="no node is annotated with stage 1; run annotate-graph first"):
        Rematerialize().apply(program_of(tiny_model("llama"), THREE_STAGES))
