"""eliminate-dead-code: what nobody reads goes, what has an effect stays."""

import operator
from dataclasses import replace

import pytest
import torch

from llmpq.fx.graphs import copy_graph, with_graph
from llmpq.passes.eliminate_dead_code import EliminateDeadCode
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.printing import format_graph_module
from llmpq.program import Program
from tests.conftest import Golden
from tests.tiny_models import calls, program_of, run, tiny_model

THREE = (("16",), ("16", "16"), ("16",))


@pytest.fixture(scope="module")
def gemma() -> Program:
    """After rematerialize: the masks and rotary values that only later stages read were cloned, and are dead on the first."""
    return run_passes(program_of(tiny_model("gemma3"), THREE), parse_pipeline("annotate-graph,trim-logits,rematerialize"))


def test_the_live_graph_of_a_gemma_reads_like_this(gemma: Program, golden: Golden) -> None:
    golden("live_gemma3.txt", format_graph_module(EliminateDeadCode().apply(gemma).require("graph_module")))


def test_what_was_cloned_is_gone_and_the_graph_computes_the_same(gemma: Program) -> None:
    live = EliminateDeadCode().apply(gemma)
    names = [{node.name for node in program.require("graph_module").graph.nodes} for program in (gemma, live)]
    assert names[1] < names[0]
    assert {"input_ids", "attention_mask", "position_ids", "past_key_values"} <= names[1]
    results = [run([program.require("graph_module")], gemma.graph, calls(True)) for program in (gemma, live)]
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))
    assert list(EliminateDeadCode().verify(live)) == []


def test_chains_of_dead_code_go_and_effects_stay(gemma: Program) -> None:
    module = gemma.require("graph_module")
    graph = copy_graph(module)
    output = next(iter(reversed(graph.nodes)))
    with graph.inserting_before(output):
        first = graph.call_function(operator.neg, (output.args[0],))
        graph.call_function(operator.neg, (first,))
        graph.call_function(torch._assert, (True, "an effect"))
    changed = replace(gemma, graph_module=with_graph(module, graph, "Changed"))
    found = list(EliminateDeadCode().verify(changed))
    assert found[-1] == "nobody reads neg_1"
    targets = [node.target for node in EliminateDeadCode().apply(changed).require("graph_module").graph.nodes]
    assert operator.neg not in targets and torch._assert in targets
