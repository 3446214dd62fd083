"""Operators of a model: arithmetic and bytes equal to what really runs, in every family."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llmpq.errors import TraceError
from llmpq.frontend.build import build_model
from llmpq.frontend.layer_kinds import kinds_of_layers
from llmpq.frontend.layer_ops import ModelOps, model_ops
from llmpq.frontend.tracing import decoder_layers, trace
from llmpq.graph import Attention
from llmpq.op_facts import expert_sets, kv_bytes_per_token, norm_edges, routers
from llmpq.op_graph import Size
from llmpq.printing import format_op_graph
from llmpq.runtime.kv_cache import KvCache
from tests.conftest import Golden
from tests.tiny_models import CONFIGS, EAGER_ONLY, GQA, tiny_config

LATENT = {
    **(GQA | {"num_key_value_heads": 4}),
    **{"q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6},
    **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    **{"first_k_dense_replace": 1, "n_shared_experts": 1},
}
FAMILIES: dict[str, PreTrainedConfig] = CONFIGS | {
    "deepseek_v3": AutoConfig.for_model("deepseek_v3", **LATENT),
    "gpt_oss": AutoConfig.for_model("gpt_oss", **GQA, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
}
SHAPES = [(2, 0, 5), (3, 7, 1), (2, 4, 3)]  # batch, past, tokens


def config_of(family: str) -> PreTrainedConfig:
    return tiny_config(family) if family in CONFIGS else FAMILIES[family]


@cache
def recorded(family: str) -> tuple[ModelOps, dict[str, int]]:
    """The operators of a tiny model without weights, and the kinds of its layers."""
    model = build_model(config_of(family))
    traced = trace(model)
    kinds = kinds_of_layers(traced, decoder_layers(model))
    return model_ops(traced, kinds), kinds


def real_model(family: str) -> PreTrainedModel:
    """With weights; experts one by one, attention as products: what a counter of operators understands."""
    implementation = "eager" if family in (*EAGER_ONLY, "gpt_oss") else "sdpa"
    options: Any = {"attn_implementation": implementation, "experts_implementation": "eager", "dtype": torch.float32}
    model: Any = AutoModelForCausalLM.from_config(config_of(family), **options)  # type: ignore[no-untyped-call]
    built: PreTrainedModel = model.eval()
    return built


def entries(ops: ModelOps, kinds: dict[str, int]) -> dict[int, Attention]:
    """Cache entries as wide as what the layers write."""
    found = {kind: Attention(1, facts.num_kv_heads, facts.head_dim, None, facts.value_dim) for kind, facts in ops.facts.items()}
    return {layer: found[kind] for layer, kind in enumerate(kinds.values())}


def counted(traced: nn.Module, kv: KvCache, shape: tuple[int, int, int]) -> FlopCounterMode:
    """FLOPs of one pass over `tokens` of each of `batch` sequences behind a past of random tokens."""
    batch, past, tokens = shape
    ids = torch.randint(3, 60, (batch, past + tokens), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(past + tokens).expand(batch, -1)
    mask = torch.ones(batch, past + tokens, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if past:
            traced(ids[:, :past], mask[:, :past], positions[:, :past], kv)
            kv.advance(past)
        counter = FlopCounterMode(display=False)
        with counter:
            traced(ids[:, past:], mask, positions[:, past:], kv)
    return counter


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_that_torch_counts_in_prefill_and_in_decode(family: str) -> None:
    ops, kinds = recorded(family)
    traced = trace(real_model(family))
    for batch, past, tokens in SHAPES:
        counter = counted(traced, KvCache(entries(ops, kinds), batch, 32, torch.float32), (batch, past, tokens))
        found = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
        size = (tokens, past + tokens, batch)
        layers = {path: ops.kinds[kind].flops(*size) for path, kind in kinds.items()}
        assert {path: found[f"{type(traced).__name__}.{path}"] for path in kinds} == layers
        ends = sum(graph.flops(*size) for graph in (ops.first, ops.shared, ops.last))
        assert counter.get_total_flops() == ends + sum(layers.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_parameters_of_real_tensors_each_once(family: str) -> None:
    ops, kinds = recorded(family)
    model: nn.Module = real_model(family)
    model = model.to(torch.bfloat16)
    for path, kind in kinds.items():
        real = {name: tuple(parameter.shape) for name, parameter in model.get_submodule(path).named_parameters()}
        assert {weight.name: weight.shape for weight in ops.kinds[kind].weights} == real
        assert ops.kinds[kind].weight_bytes == sum(p.nbytes for p in model.get_submodule(path).parameters())
    ends = {weight.name: weight.nbytes for graph in (ops.first, ops.shared, ops.last) for weight in graph.weights}
    layers = sum(ops.kinds[kind].weight_bytes for kind in kinds.values())
    assert sum(ends.values()) + layers == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_grows_by_what_layers_write(family: str) -> None:
    ops, kinds = recorded(family)
    kv = KvCache(entries(ops, kinds), batch_size=3, max_len=11, dtype=torch.bfloat16)
    assert kv.nbytes == 3 * 11 * sum(kv_bytes_per_token(ops.kinds[kind]) for kind in kinds.values())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_of_a_layer_are_one_set_chosen_by_one_router(family: str) -> None:
    graph = recorded(family)[0].kinds[0]
    (together,) = expert_sets(graph)
    experts = [op for op in graph.ops if op.kind == "experts"]
    assert [op.name for op in experts] == list(together)
    assert {op.experts_per_token for op in experts} == {2}
    assert len(routers(graph)) == 1


def test_experts_are_read_as_far_as_tokens_reach_them() -> None:
    experts = next(op for op in recorded("mixtral")[0].kinds[0].ops if op.kind == "experts")
    assert experts.weight_reads(1, 9, 1) == pytest.approx(experts.weight_bytes * 2 / 4)
    assert experts.weight_reads(200, 200, 4) == pytest.approx(experts.weight_bytes)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"input_layernorm.weight": 3, "post_attention_layernorm.weight": 2}),
        ("gpt2", {"ln_1.weight": 1, "ln_2.weight": 1}),
        ("gemma3", {"input_layernorm.weight": 3, "pre_feedforward_layernorm.weight": 2}),
        ("falcon", {"input_layernorm.weight": 2}),
        ("mixtral", {"input_layernorm.weight": 3}),
    ],
)
def test_norms_that_only_linears_read_can_take_their_factors(family: str, expected: dict[str, int]) -> None:
    """Gemma's norms behind attention and mlp feed a sum, Mixtral's second one feeds the router's experts."""
    assert {edge.gain: len(edge.linears) for edge in norm_edges(recorded(family)[0].kinds[0])} == expected


@pytest.mark.parametrize("family", ["bloom", "gemma2", "gpt_oss"])
def test_attention_that_is_written_out_is_one_operator(family: str) -> None:
    graph = recorded(family)[0].kinds[0]
    (attention,) = (op for op in graph.ops if op.kind == "attention")
    assert "_softmax" in attention.detail.split()
    assert attention.heads is not None
    assert attention.heads.keys == Size.of(1, context=1)


def test_canonical_text_of_a_recorded_layer(golden: Golden) -> None:
    golden("ops_mixtral.txt", format_op_graph(recorded("mixtral")[0].kinds[0]))


class _Chosen(nn.Module):
    """What `inner` makes of the tokens that a mask chooses."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out, rows = torch.zeros_like(hidden), hidden.sum(-1) > 0
        out[rows] = self.inner(hidden[rows])
        return out


def test_of_tokens_that_values_choose_all_are_counted() -> None:
    flops = []
    for wrap in (lambda mlp: mlp, _Chosen):
        model: Any = build_model(config_of("llama"))
        for layer in model.model.layers:
            layer.mlp = wrap(layer.mlp)
        traced = trace(model)
        flops.append(model_ops(traced, kinds_of_layers(traced, decoder_layers(model))).kinds[0].flops)
    assert flops[0] == flops[1]


def test_a_result_whose_shape_values_decide_is_refused() -> None:
    model = build_model(config_of("llama"))
    mlp: Any = model.model.layers[0].mlp
    mlp.forward = lambda hidden: hidden[hidden.sum(-1).nonzero(as_tuple=True)]
    traced = trace(model)
    with pytest.raises(TraceError, match="cannot be run on shapes alone"):
        model_ops(traced, kinds_of_layers(traced, decoder_layers(model)))
