"""trim-logits: the head sees the last position of a sequence, and every position when scoring."""

from dataclasses import replace

import pytest
import torch

from llmpq.errors import PassError
from llmpq.fx.ops import wanted_positions
from llmpq.passes.annotate_graph import AnnotateGraph
from llmpq.passes.trim_logits import TrimLogits
from llmpq.printing import format_graph_module
from llmpq.runtime.kv_cache import KvCache, PassingCache
from tests.conftest import Golden
from tests.tiny_models import VOCABULARY, program_of, tiny_model

IDS = torch.arange(14).view(2, 7)
POSITIONS = torch.arange(7).expand(2, 7)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
def test_the_last_position_is_as_before_and_scoring_still_sees_all(family: str) -> None:
    program = program_of(tiny_model(family), (("16",) * 4,))
    trimmed = TrimLogits().apply(program).require("graph_module")
    attention = {i: program.graph.kind_of(i).attention for i in range(4)}
    with torch.inference_mode():
        whole = program.require("graph_module")(IDS, None, POSITIONS, PassingCache())
        last = trimmed(IDS, None, POSITIONS, KvCache(attention, 2, 7, torch.float32))
        scored = trimmed(IDS, None, POSITIONS, PassingCache())
    assert last.shape == (2, 1, VOCABULARY)
    torch.testing.assert_close(last[:, 0], whole[:, -1])
    assert torch.equal(scored, whole)


def test_the_new_node_runs_where_the_head_runs() -> None:
    program = AnnotateGraph().apply(program_of(tiny_model("llama"), (("16",) * 2, ("16",) * 2)))
    nodes = {node.name: node for node in TrimLogits().apply(program).require("graph_module").graph.nodes}
    assert nodes["wanted_positions"].meta == nodes["lm_head"].meta
    assert nodes["lm_head"].args == (nodes["wanted_positions"],)


def test_the_trimmed_graph_of_a_gpt2_reads_like_this(golden: Golden) -> None:
    program = AnnotateGraph().apply(program_of(tiny_model("gpt2"), (("16",) * 2, ("16",) * 2)))
    golden("trimmed_gpt2.txt", format_graph_module(TrimLogits().apply(program).require("graph_module")))


def test_a_graph_without_the_head_is_refused() -> None:
    program = program_of(tiny_model("llama"), (("16",) * 4,))
    with pytest.raises(PassError, match="calls no head 'score'"):
        TrimLogits().apply(replace(program, graph=replace(program.graph, head="score")))


@pytest.mark.parametrize("rows", [1, 3])
def test_the_last_positions_have_strides_of_their_own(rows: int) -> None:
    """A linear of the strides of the whole prompt would be tens of times slower on CPU, also of one sequence."""
    hidden = torch.randn(rows, 7, 8)
    found = wanted_positions(hidden, KvCache({}, 1, 1, torch.float32))
    assert found.stride() == (8, 8, 1)
    assert torch.equal(found, hidden[:, -1:])
