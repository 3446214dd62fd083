"""What one rank of a group holds and computes of a model, against the whole model and against products split by hand."""

from dataclasses import replace

import numpy as np
import pytest

from llmpq.costs.linear_latency import linear_latency_s
from llmpq.costs.op_latency import attention_s, collectives_s, of_batch, products_s, streams_s
from llmpq.costs.shard import shard, unsplittable
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import resolve
from llmpq.graph import Attention, LayerGraph, LayerKind
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.op_graph import NO_OPS
from llmpq.precision import PRECISIONS
from tests.values import llama_graph, llama_kind

RANKS = (2, 4, 8)


def bundled(name: str) -> LayerGraph:
    return layer_graph_of(resolve(name, weights=False))


@pytest.fixture(scope="module")
def llama() -> LayerGraph:
    return bundled("llama-3-70b")


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("precision", ("16", "w8a16", "w4a16"))
def test_ranks_hold_each_weight_once_and_every_norm(llama: LayerGraph, ranks: int, precision: str) -> None:
    whole, part = llama.kinds[0], shard(llama, ranks).kinds[0]
    norms = whole.other_parameters * 2
    assert ranks * (part.weight_bytes(PRECISIONS[precision]) - norms) == whole.weight_bytes(PRECISIONS[precision]) - norms


def test_scales_of_a_whole_row_are_on_every_rank_that_has_a_part_of_it(llama: LayerGraph) -> None:
    linears = {linear.name: linear for linear in shard(llama, 4).kinds[0].linears}
    down = linears["mlp.down_proj"]
    assert (down.in_features, down.out_features, down.column_ranks) == (28672 // 4, 8192, 4)
    assert down.weight_bytes(PRECISIONS["w8a8"]) == 28672 // 4 * 8192 + 2 * 8192


@pytest.mark.parametrize("ranks", RANKS)
def test_cache_and_heads_are_divided(llama: LayerGraph, ranks: int) -> None:
    whole, part = llama.kinds[0], shard(llama, ranks).kinds[0]
    assert part.kv_bytes_per_token * ranks == whole.kv_bytes_per_token
    heads = [op.heads for op in part.ops.ops if op.heads is not None]
    assert [(found.num_heads, found.num_kv_heads) for found in heads] == [(64 // ranks, 8 // ranks)]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("model", ("llama-3-70b", "opt-13b", "gemma-3-27b", "bloom-176b", "qwen3-32b"))
def test_arithmetic_is_divided_and_summed_twice_a_layer(model: str, ranks: int) -> None:
    graph = bundled(model)
    part = shard(graph, ranks)
    for kind, own in zip(graph.kinds, part.kinds):
        assert own.ops.flops(7, 300, 3) * ranks == kind.ops.flops(7, 300, 3)
        sums = [op for op in own.ops.ops if op.kind == "all-reduce"]
        assert [op.writes(7, 300, 3) for op in sums] == [2 * 7 * 3 * graph.hidden_size] * 2
        assert {linear.column_ranks for linear in own.linears} == {1, ranks}


@pytest.mark.parametrize("ranks", RANKS)
def test_vocabularies_are_padded_and_split(ranks: int) -> None:
    graph = llama_graph(4, hidden=512, vocab=1000, tied=False)
    graph = replace(graph, kinds=(llama_kind(512, kv_heads=8),))
    part = shard(graph, ranks)
    assert part.first[0].shape == (1024 // ranks, 512)
    assert [parameter.shape for parameter in part.last] == [(512,), (1024 // ranks, 512)]
    assert [op.kind for op in part.first_ops.ops] == ["gather", "all-reduce"]
    assert [op.kind for op in part.last_ops.ops] == ["norm", "matmul", "all-gather"]
    assert part.last_ops.ops[2].writes(1, 1, 5) == 2 * 5 * 1000


def test_one_rank_is_the_model_itself(llama: LayerGraph) -> None:
    assert shard(llama, 1) == llama


def test_parts_of_a_layer_multiplied_one_by_one_add_up_to_the_layer() -> None:
    """The mlp of a Llama: rows of gate and up, columns of down, as `shard` says; the sum is what the whole computes."""
    graph = replace(llama_graph(1), kinds=(llama_kind(128, kv_heads=2),))
    whole = {linear.name: linear for linear in graph.kinds[0].linears}
    part = {linear.name: linear for linear in shard(graph, 2).kinds[0].linears}
    rng = np.random.default_rng(0)
    gate, up, down = (rng.normal(size=(linear.out_features, linear.in_features)) for linear in list(whole.values())[4:])
    x = rng.normal(size=(5, 128))
    total = np.zeros((5, 128))
    for rank in range(2):
        rows = part["mlp.gate_proj"].out_features
        own = slice(rank * rows, (rank + 1) * rows)
        assert part["mlp.down_proj"].in_features == rows and part["mlp.up_proj"].out_features == rows
        total += (np.tanh(x @ gate[own].T) * (x @ up[own].T)) @ down[:, own].T
    np.testing.assert_allclose(total, (np.tanh(x @ gate.T) * (x @ up.T)) @ down.T)


def test_a_layer_of_a_group_costs_its_parts_and_what_the_ranks_send(llama: LayerGraph) -> None:
    """Put together by hand: every linear at its part's shape, a quarter of the heads, the stream of what is not split."""
    cluster = Cluster.load("4xL4")
    group = cluster.group(cluster.devices)
    kind = shard(llama, 4).kinds[0]
    measure = of_batch(1, 600, 16)
    products = products_s(group, kind.ops, kind.linears, PRECISIONS["w4a16"], measure, "bfloat16", "vllm")
    by_hand = sum(linear_latency_s(group, linear, PRECISIONS["w4a16"], 16, "bfloat16", "vllm") for linear in kind.linears)
    assert products == pytest.approx(by_hand)
    single = cluster.devices[0]
    assert attention_s(group, kind.ops, None, 16, 1, 600, "bfloat16") == attention_s(
        single, kind.ops, None, 16, 1, 600, "bfloat16"
    )
    assert streams_s(group, kind.ops, measure, "bfloat16") < streams_s(single, llama.kinds[0].ops, measure, "bfloat16")
    assert collectives_s(group, kind.ops, measure) > 0 == collectives_s(single, llama.kinds[0].ops, measure)


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        (llama_kind(128, kv_heads=1), 2, "2 heads and 1 for keys and values; both must be multiples of 2"),
        (llama_kind(256, kv_heads=4, ffn=250), 4, "mlp.gate_proj of layer-0 is 250 wide on the side that is split"),
        (replace(llama_kind(256, kv_heads=4), attention=Attention(4, 4, 64, value_head_dim=32)), 2, "latent attention"),
        (replace(llama_kind(256, kv_heads=4), ops=NO_OPS), 2, "hands on what is split"),
    ],
    ids=("heads", "width", "latent", "unknown"),
)
def test_what_cannot_be_split_is_told(kind: LayerKind, ranks: int, message: str) -> None:
    assert message in str(unsplittable(replace(llama_graph(2), kinds=(kind,)), ranks))


def test_experts_in_one_tensor_are_not_split() -> None:
    assert "experts" in str(unsplittable(bundled("mixtral-8x7b"), 2))


@pytest.mark.parametrize(("ffn", "level"), [(512, "native"), (384, "unsupported")])
def test_groups_of_scales_that_a_split_would_cut_are_unsupported(ffn: int, level: str) -> None:
    """384 columns are 3 groups of 128: half of them is a group and a half."""
    graph = replace(llama_graph(1, hidden=512), kinds=(llama_kind(512, kv_heads=8, ffn=ffn),))
    kind, card = shard(graph, 2).kinds[0], Cluster.load("1xL4").devices[0].type
    found = layer_support("vllm", card, PRECISIONS["w4a16"], kind)
    assert found.level == level
    assert layer_support("vllm", card, PRECISIONS["16"], kind).level == "native"
    assert layer_support("vllm", card, PRECISIONS["w4a16"], graph.kinds[0]).level == "native"
    if level == "unsupported":
        assert "mlp.down_proj has 192 columns on each of 2 ranks; its scales are of groups of 128" in found.reason
