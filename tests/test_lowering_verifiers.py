"""What lowering passes find wrong with their own work: one broken program per sentence."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx

from llmpq.errors import PassError, VerifyError
from llmpq.fx.annotation import KEY, Annotation
from llmpq.fx.graphs import copy_graph, with_graph
from llmpq.fx.modules import copy_sharing_tensors
from llmpq.fx.transfers import recv, send
from llmpq.passmanager import LOWERING, Verifier, load_pass, parse_pipeline, run_passes
from llmpq.program import Program
from tests.tiny_models import program_of, tiny_model

STAGES = (("16", "w8a16"), ("w8a16", "16"))
Change = Callable[[fx.Graph], None]


@pytest.fixture(scope="module")
def traced() -> Program:
    return program_of(tiny_model("llama"), STAGES)


def up_to(name: str, program: Program) -> Program:
    """The program as the pass of that name leaves it."""
    passes = parse_pipeline(LOWERING)
    return run_passes(program, passes[: [item.name for item in passes].index(name) + 1])


def problems(name: str, program: Program) -> str:
    item = load_pass(name)()
    assert isinstance(item, Verifier)
    return "; ".join(item.verify(program))


def changed(module: fx.GraphModule, change: Change) -> fx.GraphModule:
    graph = copy_graph(module)
    change(graph)
    return with_graph(module, graph, "Changed")


def node(graph: fx.Graph, target: object) -> fx.Node:
    found: fx.Node = {each.target: each for each in graph.nodes}[target]
    return found


def annotate(target: str, annotation: Annotation | None) -> Change:
    def change(graph: fx.Graph) -> None:
        node(graph, target).meta[KEY] = annotation

    return change


def read_input_again(graph: fx.Graph) -> None:
    """The last layer reads the embeddings beside the hidden state."""
    node(graph, "model.layers.3").kwargs = {"extra": node(graph, "model.embed_tokens")}


def untrim(graph: fx.Graph) -> None:
    head = node(graph, "lm_head")
    head.args = (head.args[0].args[0],)  # type: ignore[union-attr]  # the node that trims


def drop(target: object) -> Change:
    def change(graph: fx.Graph) -> None:
        gone = node(graph, target)
        gone.replace_all_uses_with(gone.args[0])  # type: ignore[arg-type]  # its input
        graph.erase_node(gone)

    return change


def rename(graph: fx.Graph) -> None:
    node(graph, "hidden_states").target = "x"


def other_shape(graph: fx.Graph) -> None:
    found = node(graph, send)
    found.kwargs = {**found.kwargs, "shape": ("rows", "tokens", 7)}


@pytest.mark.parametrize("name", [item.name for item in parse_pipeline(LOWERING)])
def test_nothing_is_wrong_with_what_a_pass_makes(name: str, traced: Program) -> None:
    assert problems(name, up_to(name, traced)) == ""


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("annotate-graph", annotate("lm_head", None), "lm_head has no annotation"),
        (
            "annotate-graph",
            annotate("model.layers.1", Annotation(0, "CPU:0", 1, "16")),
            "model_layers_1 is annotated with stage 0, CPU:0, layer 1, 16, the plan says stage 0, CPU:0, layer 1, w8a16",
        ),
        (
            "annotate-graph",
            annotate("model.norm", Annotation(0, "CPU:0")),
            "model_norm of stage 0 reads what a later stage makes",
        ),
        ("trim-logits", untrim, "the head lm_head reads every position"),
        ("rematerialize", read_input_again, "model_embed_tokens, model_layers_1 enters stage 1, expected the hidden state alone"),
    ],
)
def test_a_broken_graph_is_told(name: str, change: Change, message: str, traced: Program) -> None:
    program = up_to(name, traced)
    assert problems(name, replace(program, graph_module=changed(program.require("graph_module"), change))) == message


@pytest.mark.parametrize(
    ("name", "stage", "change", "message"),
    [
        ("split-by-stage", 0, drop("model.layers.1"), "stage 0 runs model.layers.0, not layers [0, 1] of the plan"),
        (
            "split-by-stage",
            1,
            rename,
            "stage 1 takes x, attention_mask, position_ids, past_key_values, "
            "expected hidden_states, attention_mask, position_ids, past_key_values",
        ),
        (
            "insert-transfers",
            0,
            drop(send),
            "stage 0 sends nothing and stage 1 receives model_layers_1 [rows, tokens, 32] float32",
        ),
        ("insert-transfers", 1, drop(recv), "float32, stage 0 to 1 and stage 1 receives nothing; expected one transfer"),
        ("insert-transfers", 0, other_shape, "stage 0 sends model_layers_1 [rows, tokens, 7] float32, stage 0 to 1 and stage 1"),
    ],
)
def test_broken_stages_are_told(name: str, stage: int, change: Change, message: str, traced: Program) -> None:
    program = up_to(name, traced)
    stages = list(program.require("stages"))
    stages[stage] = changed(stages[stage], change)
    assert message in problems(name, replace(program, stages=tuple(stages)))


def test_a_linear_that_was_not_replaced_is_told(traced: Program) -> None:
    program = up_to("replace-linears", traced)
    first, second = program.require("stages")
    owned = copy_sharing_tensors(first)
    owned.set_submodule("model.layers.1.mlp.up_proj", torch.nn.Linear(32, 48))
    found = problems("replace-linears", replace(program, stages=(owned, second)))
    assert found == "model.layers.1.mlp.up_proj is a Linear, expected a QuantizedLinear at w8a16"


def test_deleted_annotations_end_the_lowering_with_a_clear_error(traced: Program) -> None:
    annotated = up_to("eliminate-dead-code", traced)
    for found in annotated.require("graph_module").graph.nodes:
        found.meta.pop(KEY, None)
    with pytest.raises(PassError, match=r"split-by-stage: node \w+ has no annotation; run annotate-graph first"):
        run_passes(annotated, parse_pipeline("split-by-stage,insert-transfers,replace-linears"))


def test_without_rematerialize_the_verifier_never_sees_a_wrong_cut(traced: Program) -> None:
    with pytest.raises(PassError, match=r"would enter stage 1 beside the hidden state of stage 0; run rematerialize first"):
        run_passes(traced, parse_pipeline("annotate-graph,trim-logits,split-by-stage"))


def test_what_a_verifier_says_names_the_pass(traced: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = load_pass("annotate-graph")
    monkeypatch.setattr(cls, "verify", lambda self, program: ["something is off"])
    with pytest.raises(VerifyError, match=r"^after pass annotate-graph: something is off$"):
        run_passes(traced, parse_pipeline("annotate-graph"))
