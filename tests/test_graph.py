"""LayerGraph: bytes and parameters from shapes."""

from dataclasses import replace

from llmpq.graph import Linear
from llmpq.precision import PRECISIONS
from tests.values import llama_graph, llama_kind


def test_a_kind_counts_its_parameters() -> None:
    assert llama_kind().parameters == 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 256


def test_16_bit_bytes_are_two_per_parameter() -> None:
    kind = llama_kind()
    assert kind.weight_bytes(PRECISIONS["16"]) == 2 * kind.parameters


EXPERTS = Linear("mlp.experts.gate_up_proj", 64, 32, True, "mlp", "x", experts=8, active_experts=2)


def test_experts_of_a_module_that_is_not_known_stay_at_16_bits() -> None:
    assert not EXPERTS.is_quantizable and EXPERTS.stored == (EXPERTS,)
    assert EXPERTS.weight_bytes(PRECISIONS["w4a16"]) == EXPERTS.weight_bytes(PRECISIONS["16"]) == 8 * (64 * 32 + 32) * 2


def test_known_experts_weigh_what_the_linears_weigh_as_which_they_are_stored() -> None:
    known = replace(EXPERTS, pieces=("gate_proj", "up_proj"))
    assert [linear.name for linear in known.stored[:3]] == [
        f"mlp.experts.{x}" for x in ("0.gate_proj", "0.up_proj", "1.gate_proj")
    ]
    assert {(linear.in_features, linear.out_features, linear.experts) for linear in known.stored} == {(64, 16, 1)}
    assert len({linear.fusion_group for linear in known.stored}) == 8
    for precision in PRECISIONS.values():
        assert known.weight_bytes(precision) == sum(linear.weight_bytes(precision) for linear in known.stored)
    kind = replace(llama_kind(), linears=(known,))
    assert kind.part_size("mlp") == 8 * 64 * 32 and len(kind.stored) == 16


def test_a_conv1d_weighs_what_its_transpose_does() -> None:
    linear = Linear("x", 64, 32, True, "mlp", "x")
    assert all(replace(linear, transposed=True).weight_bytes(x) == linear.weight_bytes(x) for x in PRECISIONS.values())


def test_a_tied_head_is_a_copy_only_on_a_device_without_the_embedding() -> None:
    tied, untied = llama_graph(tied=True), llama_graph(tied=False)
    assert tied.last_bytes(with_first=True) == 128 * 2
    assert tied.last_bytes(with_first=False) == (128 + 512 * 128) * 2
    assert untied.last_bytes(with_first=True) == untied.last_bytes(with_first=False) == (128 + 512 * 128) * 2
    assert untied.parameters - tied.parameters == 512 * 128
