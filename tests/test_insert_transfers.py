"""insert-transfers: what crosses each cut, said by nodes that refuse anything else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import fx

from llmpq.errors import BackendError, PassError
from llmpq.fx.annotation import annotation_of
from llmpq.fx.transfers import Transfer, recv, send, send_as, transfers
from llmpq.passes.insert_transfers import InsertTransfers
from llmpq.passes.replace_linears import ReplaceLinears
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.printing import format_graph_module
from llmpq.program import Program
from tests.conftest import Golden
from tests.test_replace_linears import shards
from tests.tiny_models import CONFIGS, calls, program_of, run, tiny_model

THREE = (("16",), ("16", "16"), ("16",))
TWO = (("16",) * 3, ("16",))


def lowered(family: str, stages: Sequence[Sequence[str]], pipeline: str = LOWERING) -> Program:
    return run_passes(program_of(tiny_model(family), stages), parse_pipeline(pipeline))


def live_at(cut: int, module: fx.GraphModule) -> set[str]:
    """The values that are made before a cut and read behind it, by the annotations of the graph before it is cut."""
    place = {node: found.stage for node in module.graph.nodes if (found := annotation_of(node)) is not None}
    return {node.name for node in place if place[node] < cut and any(place.get(user, -1) >= cut for user in node.users)}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_values_live_at_each_cut_are_exactly_the_transfers(family: str) -> None:
    program = lowered(family, THREE)
    found = list(transfers(program.require("stages")))
    assert [(transfer.source, transfer.target) for transfer in found] == [(0, 1), (1, 2)]
    for transfer in found:
        assert live_at(transfer.target, program.require("graph_module")) == {transfer.value}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("padded", [False, True], ids=["equal lengths", "left padding"])
def test_interpreting_the_unsplit_annotated_graph_equals_the_pipeline_exactly(family: str, padded: bool) -> None:
    program = lowered(family, THREE)
    unsplit = program.require("graph_module")
    assert all(annotation_of(node) is not None for node in unsplit.graph.nodes if node.op == "call_module")
    inputs = calls(padded)
    whole = run([fx.Interpreter(unsplit).run], program.graph, inputs)
    pipeline = run(program.require("stages"), program.graph, inputs)
    assert all(torch.equal(left, right) for left, right in zip(whole, pipeline, strict=True))


def test_the_transfers_of_a_llama_read_like_this(golden: Golden) -> None:
    program = lowered("llama", TWO)
    parts = [f"stage {i}\n{format_graph_module(stage)}" for i, stage in enumerate(program.require("stages"))]
    golden("transfers_llama.txt", "\n".join([*map(str, transfers(program.require("stages"))), *parts]))


def test_a_transfer_counts_its_bytes() -> None:
    transfer = Transfer("x", 0, 1, ("rows", "tokens", 32), torch.bfloat16)
    assert transfer.num_bytes(rows=3, tokens=7) == 3 * 7 * 32 * 2
    assert str(transfer) == "x [rows, tokens, 32] bfloat16, stage 0 to 1"


def test_a_single_stage_neither_sends_nor_receives() -> None:
    (stage,) = lowered("llama", [["16"] * 4]).require("stages")
    assert not any(node.target in (send, recv) for node in stage.graph.nodes)


def test_a_value_leaves_in_the_transfers_dtype() -> None:
    sent = send(torch.ones(2, 3, 4, dtype=torch.float32), "x", 0, 1, ("rows", "tokens", 4), torch.bfloat16)
    assert sent.dtype == torch.bfloat16 and sent.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, 3, 5), r"stage 1 received \[2, 3, 5\], expected x \[rows, tokens, 4\] float32, stage 0 to 1"),
        (torch.ones(2, 4), r"stage 1 received \[2, 4\], expected"),
        (torch.ones(2, 3, 4).half(), r"stage 1 received torch.float16, expected x .*; run the stages of one compiled model"),
    ],
)
def test_a_stage_refuses_what_is_not_its_transfer(value: torch.Tensor, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        recv(value, "x", 0, 1, ("rows", "tokens", 4), torch.float32)
    with pytest.raises(BackendError, match="stage 0 would send"):
        send(torch.ones(2, 3, 5), "x", 0, 1, ("rows", "tokens", 4), torch.float32)


def test_the_stages_that_run_refuse_the_hidden_state_of_another_model() -> None:
    last = lowered("llama", TWO).require("stages")[1]
    with pytest.raises(BackendError, match=r"stage 1 received \[3, 7, 31\]"):
        last(torch.zeros(3, 7, 31), None, calls(False)[0][2], None)


def test_for_a_run_in_another_dtype_transfers_are_changed_too() -> None:
    stages = lowered("llama", TWO).require("stages")
    for stage in stages:
        send_as(stage, torch.float64)
        stage.to(torch.float64)
    assert {transfer.dtype for transfer in transfers(stages)} == {torch.float64}


def test_stages_that_take_no_hidden_state_are_refused() -> None:
    program = lowered("llama", TWO)
    unsplit = program.require("graph_module")
    with pytest.raises(PassError, match="stage 1 takes no hidden_states; run split-by-stage first"):
        InsertTransfers().apply(replace(program, stages=(unsplit, unsplit)))


def test_a_quantized_unsplit_graph_equals_its_pipeline_exactly() -> None:
    """The unsplit graph lowered like a stage, on the weights of all stages."""
    program = lowered("llama", (("w8a16", "16"), ("w4a16", "w8a8")))
    unsplit = ReplaceLinears().apply(replace(program, stages=(program.require("graph_module"),))).require("stages")[0]
    files = shards(program, tiny_model("llama"))
    unsplit.load_state_dict({name: tensor for file in files for name, tensor in file.items()}, assign=True)
    for stage, file in zip(program.require("stages"), files):
        stage.load_state_dict(file, assign=True)
    inputs = calls(True)
    plain = [lowered("llama", TWO).require("graph_module")]
    whole, pipeline, not_quantized = (
        run(modules, program.graph, inputs) for modules in ([unsplit], program.require("stages"), plain)
    )
    assert all(torch.equal(left, right) for left, right in zip(whole, pipeline, strict=True))
    assert not torch.equal(whole[0], not_quantized[0])
