"""Placing tensors: each goes to its stage once, under its name in the model."""

import warnings

import pytest

from llmpq.checkpoint.stage_layout import Placement, place_tensors, stage_file
from llmpq.errors import CheckpointError, LlmpqWarning
from tests.tiny_checkpoint import LAYERS, LINEARS, graph, plan

NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
PARTS = tuple(f"{linear.name}.weight" for linear in LINEARS) + NORMS
LAYER_NAMES = [f"model.layers.{layer}.{part}" for layer in range(LAYERS) for part in PARTS]
NAMES = [*LAYER_NAMES, "model.embed_tokens.weight", "model.norm.weight"]


def names_of(stage: tuple[Placement, ...]) -> set[str]:
    return {placement.name for placement in stage}


def test_every_tensor_is_placed_once_with_its_layer() -> None:
    stages = place_tensors([*NAMES, "lm_head.weight"], graph(tied=False), plan(cuts=(1, 3)))
    assert sorted(name for stage in stages for name in names_of(stage)) == sorted([*NAMES, "lm_head.weight"])
    layers = [{name.split(".")[2] for name in names_of(stage) if ".layers." in name} for stage in stages]
    assert layers == [{"0"}, {"1", "2"}, {"3"}]
    assert "model.embed_tokens.weight" in names_of(stages[0]) and {"model.norm.weight", "lm_head.weight"} <= names_of(stages[2])


def test_a_tied_head_is_copied_to_another_last_stage_and_only_there() -> None:
    one = place_tensors(NAMES, graph(), plan(cuts=()))
    two = place_tensors([*NAMES, "lm_head.weight"], graph(), plan())
    assert "lm_head.weight" not in names_of(one[0])
    copy = next(placement for placement in two[1] if placement.name == "lm_head.weight")
    assert (copy.sources, copy.precision) == (("model.embed_tokens.weight",), None)


def test_linears_have_the_precision_of_their_layer_and_norms_have_none() -> None:
    placed = {placement.name: placement.precision for stage in place_tensors(NAMES, graph(), plan()) for placement in stage}
    found = {layer: placed[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(LAYERS)}
    assert [precision and precision.name for precision in found.values()] == ["w8a8", "w8a16", "w4a16", None]
    assert placed["model.layers.0.input_layernorm.weight"] is None


def test_the_order_does_not_depend_on_the_checkpoints() -> None:
    assert place_tensors(NAMES[::-1], graph(), plan()) == place_tensors(NAMES, graph(), plan())


def test_a_base_model_checkpoint_gets_the_names_of_the_causal_model() -> None:
    bare = [name.removeprefix("model.") for name in NAMES]
    placed = {placement.name: placement.sources for stage in place_tensors(bare, graph(), plan()) for placement in stage}
    assert placed["model.layers.2.mlp.up_proj.weight"] == ("layers.2.mlp.up_proj.weight",)
    assert set(placed) == {*NAMES, "lm_head.weight"}


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_tensor_that_the_graph_needs_is_missed(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"model tiny: no tensor {name}"):
        place_tensors([other for other in NAMES if other != name], graph(), plan())


def test_dead_buffers_are_dropped_in_silence_and_strangers_with_a_warning() -> None:
    buffers = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.attn.bias", "model.rotary_emb.inv_freq"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert place_tensors(NAMES + buffers, graph(), plan()) == place_tensors(NAMES, graph(), plan())
    with pytest.warns(LlmpqWarning, match="1 tensors belong to no layer and are left out: vision.patch.weight"):
        place_tensors([*NAMES, "vision.patch.weight"], graph(), plan())


def test_layers_are_told_apart_by_whole_names() -> None:
    ten = [f"model.layers.{layer}.{part}" for layer in range(11) for part in PARTS]
    names = [*ten, "model.embed_tokens.weight", "model.norm.weight"]
    stages = place_tensors(names, graph(layers=11), plan(("16",) * 11, cuts=(10,)))
    assert all(".layers.10." in name for name in names_of(stages[1]) if ".layers." in name)


def test_stage_files_sort_in_order() -> None:
    assert stage_file(0, 3) == "model-stage-00000-of-00003.safetensors"
