"""Names of the checkpoint against names in the model."""

from dataclasses import replace

import pytest

from llmpq.checkpoint.source_names import fused_parameters, module_sources
from llmpq.graph import Parameter
from tests.tiny_checkpoint import MIXTRAL_LINEARS, graph


def test_names_of_the_model_stay_and_come_in_natural_order() -> None:
    names = ["model.norm.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"]
    assert module_sources(names, graph()) == {name: (name,) for name in sorted(names)}


def test_a_base_model_gets_its_prefix_and_the_head_does_not() -> None:
    found = module_sources(["norm.weight", "lm_head.weight"], graph())
    assert found == {"lm_head.weight": ("lm_head.weight",), "model.norm.weight": ("norm.weight",)}


@pytest.mark.parametrize(
    ("parent", "gate", "up", "down"), [("block_sparse_moe", "w1", "w3", "w2"), ("mlp", "gate_proj", "up_proj", "down_proj")]
)
def test_experts_are_gathered_in_numerical_order_gate_above_up(parent: str, gate: str, up: str, down: str) -> None:
    stem = f"model.layers.1.{parent}"
    names = [f"{stem}.experts.{expert}.{part}.weight" for expert in (10, 2, 1) for part in (down, up, gate)]
    mixtral = replace(graph(linears=MIXTRAL_LINEARS), architecture="MixtralForCausalLM")
    found = module_sources([*names, f"{stem}.gate.weight"], mixtral)
    order = [(expert, part) for expert in (1, 2, 10) for part in (gate, up)]
    assert found == {
        "model.layers.1.mlp.experts.gate_up_proj": tuple(f"{stem}.experts.{expert}.{part}.weight" for expert, part in order),
        "model.layers.1.mlp.experts.down_proj": tuple(f"{stem}.experts.{expert}.{down}.weight" for expert in (1, 2, 10)),
        "model.layers.1.mlp.gate.weight": (f"{stem}.gate.weight",),
    }


def test_experts_that_the_graph_does_not_fuse_keep_their_names() -> None:
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    assert module_sources([name], graph()) == {name: (name,)}
    assert fused_parameters(graph()) == {}
    assert fused_parameters(graph(linears=MIXTRAL_LINEARS))["model.layers.3.mlp.experts.down_proj"] == 4


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_a_multimodal_checkpoint_is_found(prefix: str) -> None:
    names = [f"{prefix}norm.weight", f"{prefix}layers.0.mlp.up_proj.weight", "language_model.lm_head.weight"]
    found = module_sources(names, graph())
    assert list(found) == ["lm_head.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]


def test_tensors_are_renamed_as_transformers_renames_them() -> None:
    laguna = replace(graph(), architecture="LagunaForCausalLM")
    name = "model.layers.1.mlp.shared_expert.up_proj.weight"
    assert module_sources([name], laguna) == {"model.layers.1.mlp.shared_experts.up_proj.weight": (name,)}


def test_a_tied_bias_comes_from_what_it_is_tied_to() -> None:
    last = (*graph().last, Parameter("lm_head.decoder.bias", (96,)))
    roberta = replace(graph(), architecture="RobertaForCausalLM", last=last)
    assert module_sources(["model.norm.weight", "lm_head.bias"], roberta)["lm_head.decoder.bias"] == ("lm_head.bias",)
