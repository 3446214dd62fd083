"""LayerGraph extraction: what each family's layers are made of, found by dataflow."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from llmpq.errors import TraceError
from llmpq.frontend.build import build_model, trace_model
from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.tracing import trace
from llmpq.graph import Attention, LayerGraph, Linear
from tests.tiny_models import CONFIGS, tiny_config, tiny_model


def graph_of(family: str) -> LayerGraph:
    return trace_model(build_model(tiny_config(family)), family)[1]


def groups(graph: LayerGraph) -> list[set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for linear in graph.kinds[0].linears:
        found[linear.fusion_group].add(linear.name.rpartition(".")[2])
    return list(found.values())


@pytest.mark.parametrize("family", CONFIGS)
def test_the_graph_counts_every_parameter_of_the_model_once(family: str) -> None:
    model = build_model(tiny_config(family))
    assert trace_model(model, family)[1].parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_with_weights_gives_the_same_graph_and_keeps_no_hook(family: str) -> None:
    model = tiny_model(family)
    graph = layer_graph(model, trace(model), family)
    assert graph == graph_of(family)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]),
        ("opt", [{"q_proj", "k_proj", "v_proj"}, {"out_proj"}, {"fc1"}, {"fc2"}]),
        ("gpt2", [{"c_attn"}, {"c_proj"}, {"c_fc"}, {"c_proj"}]),
        ("phi3", [{"o_proj"}, {"qkv_proj"}, {"gate_up_proj"}, {"down_proj"}]),
        ("mixtral", [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_up_proj"}, {"down_proj"}]),
        ("falcon", [{"query_key_value"}, {"dense"}, {"dense_h_to_4h"}, {"dense_4h_to_h"}]),
    ],
)
def test_linears_that_read_the_same_tensor_share_a_group(family: str, expected: list[set[str]]) -> None:
    assert groups(graph_of(family)) == expected


@pytest.mark.parametrize("family", CONFIGS)
def test_attention_is_the_submodule_that_writes_the_cache(family: str) -> None:
    parts = {linear.name.split(".")[0]: linear.part for linear in graph_of(family).kinds[0].linears}
    assert {name for name, part in parts.items() if part == "attention"} in (
        {"self_attn"},
        {"attn"},
        {"self_attention"},
        {"attention"},
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", Attention(4, 2, 8)),
        ("qwen3", Attention(4, 2, 16)),
        ("opt", Attention(4, 4, 8)),
        ("falcon", Attention(4, 1, 8)),
        ("mistral", Attention(4, 2, 8, window=6)),
    ],
)
def test_heads_are_those_of_the_keys_that_are_cached(family: str, expected: Attention) -> None:
    assert graph_of(family).kinds[0].attention == expected


def test_layers_that_differ_only_in_their_window_are_of_two_kinds() -> None:
    graph = graph_of("gemma3")
    assert graph.layer_kind == (0, 1, 0, 1)
    assert [kind.attention.window for kind in graph.kinds] == [6, None]


def test_layers_of_unlike_shapes_are_of_two_kinds() -> None:
    model = build_model(tiny_config("llama"))
    model.model.layers[2].mlp.gate_proj = nn.Linear(32, 40, bias=False, device="meta")
    model.model.layers[2].mlp.up_proj = nn.Linear(32, 40, bias=False, device="meta")
    model.model.layers[2].mlp.down_proj = nn.Linear(40, 32, bias=False, device="meta")
    graph = trace_model(model, "uneven")[1]
    assert graph.layer_kind == (0, 0, 1, 0)
    assert graph.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_conv1d_is_transposed_and_experts_are_three_dimensional() -> None:
    assert all(linear.transposed for linear in graph_of("gpt2").kinds[0].linears)
    experts = [linear for linear in graph_of("mixtral").kinds[0].linears if linear.experts > 1]
    assert experts == [
        Linear(f"mlp.experts.{name}", *sizes, False, "mlp", f"mlp.experts.{name}", experts=4, active_experts=2, pieces=pieces)
        for name, sizes, pieces in (
            ("gate_up_proj", (32, 96), ("gate_proj", "up_proj")),
            ("down_proj", (48, 32), ("down_proj",)),
        )
    ]


def test_routers_and_norms_are_other_parameters() -> None:
    hidden, experts = 32, 4
    assert graph_of("mixtral").kinds[0].other_parameters == 2 * hidden + experts * hidden


def test_a_tied_head_is_not_counted_at_the_end() -> None:
    graph = graph_of("qwen3")
    assert (graph.head, graph.tied_head) == ("lm_head", "model.embed_tokens.weight")
    assert [parameter.name for parameter in graph.last] == ["model.norm.weight"]


def test_an_untied_head_stands_behind_the_layers() -> None:
    graph = graph_of("llama")
    assert graph.tied_head is None
    assert [(parameter.name, parameter.shape) for parameter in graph.last] == [
        ("model.norm.weight", (32,)),
        ("lm_head.weight", (64, 32)),
    ]


def test_projections_around_the_layers_belong_to_the_end_they_stand_at() -> None:
    graph = graph_of("opt")
    assert [parameter.name.rpartition("decoder.")[2] for parameter in graph.first] == [
        "embed_tokens.weight",
        "project_in.weight",
        "embed_positions.weight",
    ]
    assert "model.decoder.project_out.weight" in [parameter.name for parameter in graph.last]


def test_a_layer_that_caches_nothing_is_named() -> None:
    model = build_model(tiny_config("llama"))
    model.model.layers[0].self_attn.forward = lambda hidden_states, **kwargs: (torch.empty_like(hidden_states), None)
    with pytest.raises(TraceError, match=r"layer model\.layers\.0 wrote the KV cache 0 times; expected once"):
        trace_model(model, "stateless")
