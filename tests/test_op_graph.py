"""OpGraph: sizes as polynomials, operators as values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.op_facts import NormEdge, attention_products, expert_sets, fusion_groups, kv_bytes_per_token, norm_edges, routers
from llmpq.op_graph import OpGraph, Size, distinct_experts
from llmpq.printing import format_op_graph
from llmpq.serialize import dumps, loads
from tests.conftest import Golden
from tests.hand_made_ops import layer_ops

powers = st.integers(0, 2)
sizes = st.lists(st.tuples(st.integers(-9, 9), powers, powers, powers), max_size=4).map(Size.sum)
counts = st.integers(1, 50)


@given(sizes, sizes, counts, counts, counts)
def test_sizes_add_and_multiply_as_their_values_do(left: Size, right: Size, tokens: int, context: int, batch: int) -> None:
    at = (tokens, context, batch)
    assert (left + right)(*at) == left(*at) + right(*at)
    assert (left * right)(*at) == left(*at) * right(*at)
    assert (left * 3)(*at) == 3 * left(*at)


@given(sizes, st.lists(counts, min_size=1, max_size=3))
def test_a_size_at_arrays_is_its_value_at_each_element(size: Size, tokens: list[int]) -> None:
    found = size.at(np.array(tokens), np.array(7), np.array(2))
    assert found.tolist() == [size(count, 7, 2) for count in tokens]


@given(sizes)
def test_equal_polynomials_are_equal_values(size: Size) -> None:
    assert Size.sum(reversed((*size.terms, (1, 2, 2, 2), (-1, 2, 2, 2)))) == size


def test_a_size_reads_as_a_formula() -> None:
    assert (
        str(Size.of(4, batch=1, tokens=1, context=1) + Size.of(1, tokens=2) + Size.of(5))
        == "4 batch tokens context + tokens^2 + 5"
    )
    assert str(Size()) == "0"


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 512))
def test_touched_experts_grow_to_all_of_them(experts: int, active: int, tokens: int) -> None:
    active = min(active, experts)
    found = distinct_experts(experts, active, tokens)
    assert active - 1e-9 <= found <= experts
    assert found <= distinct_experts(experts, active, tokens + 1)
    assert abs(distinct_experts(experts, active, 1) - active) < 1e-9


def test_touched_experts_are_the_mean_over_random_routings() -> None:
    generator = np.random.default_rng(0)
    drawn = [len({e for _ in range(5) for e in generator.choice(16, 3, replace=False)}) for _ in range(4000)]
    assert abs(np.mean(drawn) - distinct_experts(16, 3, 5)) < 0.1


def test_operators_survive_json() -> None:
    graph = layer_ops(128, 1, 256, 64)
    assert loads(OpGraph, dumps(graph)) == graph


def test_canonical_text_of_a_layer(golden: Golden) -> None:
    golden("ops_hand_made.txt", format_op_graph(layer_ops(128, 1, 256, 64)))


def test_flops_of_a_layer_are_those_of_its_products_and_its_attention() -> None:
    graph = layer_ops(128, 1, 256, 64)
    weights = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128
    assert graph.flops(3, 10, 2) == 2 * 3 * 2 * weights + 4 * 2 * 3 * 10 * 128


def test_linears_that_read_one_value_are_a_group_and_norms_know_their_readers() -> None:
    graph = layer_ops(128, 1, 256, 64)
    assert fusion_groups(graph) == {
        **dict.fromkeys(("matmul_1", "matmul_2", "matmul_3"), "matmul_1"),
        "matmul_4": "matmul_4",
        **dict.fromkeys(("matmul_5", "matmul_6"), "matmul_5"),
        "matmul_7": "matmul_7",
    }
    assert norm_edges(graph) == (
        NormEdge("norm_1", "input_layernorm.weight", ("matmul_1", "matmul_2", "matmul_3")),
        NormEdge("norm_2", "post_attention_layernorm.weight", ("matmul_5", "matmul_6")),
    )
    assert attention_products(graph) == {"matmul_1", "matmul_2", "matmul_3", "matmul_4"}
    assert kv_bytes_per_token(graph) == 2 * 64 * 2
    assert not routers(graph)
    assert not expert_sets(graph)
