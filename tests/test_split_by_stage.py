"""split-by-stage: the stages in sequence are the unsplit graph."""

import operator
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from llmpq.errors import PassError
from llmpq.frontend.tracing import INPUTS
from llmpq.fx.annotation import KEY
from llmpq.fx.graphs import copy_graph, with_graph
from llmpq.passes.annotate_graph import AnnotateGraph
from llmpq.passes.rematerialize import Rematerialize
from llmpq.passes.split_by_stage import SplitByStage
from llmpq.printing import format_graph_module
from llmpq.program import Program
from tests.conftest import Golden
from tests.tiny_models import CONFIGS, calls, program_of, run, tiny_model

PARTITIONS = {
    "one": (("16",) * 4,),
    "two": (("16",) * 3, ("16",)),
    "three": (("16",), ("16", "16"), ("16",)),
}


def annotated(family: str, stages: Sequence[Sequence[str]]) -> Program:
    model = tiny_model(family)
    return Rematerialize().apply(AnnotateGraph().apply(program_of(model, stages)))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("stages", PARTITIONS)
def test_stages_in_sequence_equal_the_unsplit_graph_bit_for_bit(family: str, stages: str) -> None:
    program = SplitByStage().apply(annotated(family, PARTITIONS[stages]))
    for padded in (False, True):
        inputs = calls(padded)
        whole = run([program.require("graph_module")], program.graph, inputs)
        assert all(torch.equal(a, b) for a, b in zip(whole, run(program.require("stages"), program.graph, inputs), strict=True))


@pytest.mark.parametrize("family", CONFIGS)
def test_stages_have_the_uniform_signature_and_the_models_parameter_names(family: str) -> None:
    program = SplitByStage().apply(annotated(family, PARTITIONS["three"]))
    stages = program.require("stages")
    signatures = [tuple(node.target for node in stage.graph.nodes if node.op == "placeholder") for stage in stages]
    assert signatures == [INPUTS, *[("hidden_states", *INPUTS[1:])] * 2]
    names = [set(dict(stage.named_parameters(remove_duplicate=False))) for stage in stages]
    assert set.union(*names) == set(dict(program.require("graph_module").named_parameters(remove_duplicate=False)))
    assert all(left.isdisjoint(right) for left, right in pairwise(names))


def test_the_stages_of_a_llama_read_like_this(golden: Golden) -> None:
    stages = SplitByStage().apply(annotated("llama", PARTITIONS["two"])).require("stages")
    golden("split_llama.txt", "\n".join(f"stage {i}\n{format_graph_module(stage)}" for i, stage in enumerate(stages)))


def test_without_annotations_the_remedy_is_named() -> None:
    program = program_of(tiny_model("llama"), PARTITIONS["two"])
    with pytest.raises(PassError, match="node model_embed_tokens has no annotation; run annotate-graph first"):
        SplitByStage().apply(program)


def test_a_graph_whose_annotations_were_deleted_is_refused() -> None:
    program = annotated("llama", PARTITIONS["two"])
    for node in program.require("graph_module").graph.nodes:
        node.meta.pop(KEY, None)
    with pytest.raises(PassError, match="run annotate-graph first"):
        SplitByStage().apply(program)


def test_values_beside_the_hidden_state_are_named() -> None:
    program = AnnotateGraph().apply(program_of(tiny_model("llama"), PARTITIONS["two"]))
    expected = (
        "attention_mask_1, model_rotary_emb would enter stage 1 beside the hidden state of stage 0; run rematerialize first"
    )
    with pytest.raises(PassError, match=expected):
        SplitByStage().apply(program)


def test_a_pass_of_the_users_that_caps_the_logits_changes_the_stages_as_expected() -> None:
    program = annotated("llama", PARTITIONS["two"])
    module = program.require("graph_module")
    graph = copy_graph(module)
    head = next(node for node in graph.nodes if node.target == "lm_head")
    with graph.inserting_after(head):
        capped = graph.call_function(operator.mul, (head, 2.0))
    head.replace_all_uses_with(capped, delete_user_cb=lambda user: user is not capped)
    capped.meta = dict(head.meta)
    doubled = SplitByStage().apply(replace(program, graph_module=with_graph(module, graph, "Doubled")))
    inputs = calls(padded=True)
    plain = run(SplitByStage().apply(program).require("stages"), program.graph, inputs)
    assert all(torch.equal(2.0 * a, b) for a, b in zip(plain, run(doubled.require("stages"), program.graph, inputs), strict=True))
