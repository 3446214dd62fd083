"""LayerGraph: bytes and parameters from shapes."""

from dataclasses import replace

import pytest

from llmpq.graph import Linear
from llmpq.precision import PRECISIONS
from tests.values import llama_graph, llama_kind


def test_a_kind_counts_its_parameters() -> None:
    assert llama_kind().parameters == 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 256


def test_16_bit_bytes_are_two_per_parameter() -> None:
    kind = llama_kind()
    assert kind.weight_bytes(PRECISIONS["16"]) == 2 * kind.parameters


@pytest.mark.parametrize("linear", [{"transposed": True}, {"experts": 8, "active_experts": 2}])
def test_what_checkpoints_cannot_express_stays_at_16_bits(linear: dict[str, int]) -> None:
    item = replace(Linear("x", 64, 32, True, "mlp", "x"), **linear)  # type: ignore[arg-type]  # fields of two types
    assert not item.is_quantizable
    assert item.weight_bytes(PRECISIONS["w4a16"]) == item.weight_bytes(PRECISIONS["16"]) == item.experts * (64 * 32 + 32) * 2


def test_a_tied_head_is_a_copy_only_on_a_device_without_the_embedding() -> None:
    tied, untied = llama_graph(tied=True), llama_graph(tied=False)
    assert tied.last_bytes(with_first=True) == 128 * 2
    assert tied.last_bytes(with_first=False) == (128 + 512 * 128) * 2
    assert untied.last_bytes(with_first=True) == untied.last_bytes(with_first=False) == (128 + 512 * 128) * 2
    assert untied.parameters - tied.parameters == 512 * 128
