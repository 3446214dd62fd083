"""Sizes of linears that engines' kernels take, and those that become a constraint of planning."""

from dataclasses import replace

import pytest

from llmpq.hardware.devices import device_types
from llmpq.hardware.kernel_shapes import fused_rows, layer_support, shape_problems
from llmpq.precision import PRECISIONS
from tests.values import llama_kind

TYPES = device_types()


def test_rows_of_one_fusion_group_count_together() -> None:
    assert fused_rows(llama_kind(hidden=128, kv_heads=1, ffn=96, head_dim=64)) == {
        "self_attn.q_proj": 256,
        "self_attn.o_proj": 128,
        "mlp.gate_proj": 192,
        "mlp.down_proj": 128,
    }


@pytest.mark.parametrize(
    ("engine", "device", "precision", "ffn", "level"),
    [
        ("vllm", "L4", "w4a16", 96, "native"),  # groups of 32; rows and columns are padded
        ("vllm", "L4", "w4a16", 300, "unsupported"),  # groups of 100
        ("vllm", "L4", "w8a8", 300, "native"),
        ("vllm", "CPU", "w4a16", 96, "native"),
        ("vllm", "CPU", "w4a16", 100, "unsupported"),
        ("vllm", "CPU", "w8a16", 100, "dequantize"),
        ("vllm", "V100-32", "w4a16", 128, "unsupported"),
        ("llama.cpp", "V100-32", "w4a16", 100, "unsupported"),
        ("llama.cpp", "V100-32", "w4a16", 96, "native"),
        ("local", "T4", "w4a16", 100, "dequantize"),
    ],
)
def test_support_of_a_layer_knows_its_sizes(engine: str, device: str, precision: str, ffn: int, level: str) -> None:
    assert layer_support(engine, TYPES[device], PRECISIONS[precision], llama_kind(ffn=ffn)).level == level


def test_a_refused_size_is_told_with_its_linear_and_a_source() -> None:
    refused = next(shape_problems("vllm", "cpu", PRECISIONS["w4a16"], llama_kind(ffn=100)))
    assert refused.reason == "mlp.gate_proj has 200 rows with those fused to it; the kernel wants a multiple of 32"
    assert refused.source.startswith("vLLM 0.32")


def test_linears_that_stay_at_16_bits_may_have_any_size() -> None:
    kind = llama_kind(ffn=100)
    kind = replace(kind, linears=tuple(replace(linear, experts=4) for linear in kind.linears))
    assert list(shape_problems("vllm", "cpu", PRECISIONS["w4a16"], kind)) == []
