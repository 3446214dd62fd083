"""Which engines load a plan's checkpoint, and the reasons why others do not."""

from dataclasses import replace

import pytest

from llmpq.checkpoint.loadable_engines import loadable_engines
from llmpq.graph import LayerGraph
from tests.tiny_checkpoint import LINEARS, graph, plan


def test_sixteen_bits_load_everywhere_but_in_a_reader_of_gguf() -> None:
    engines = loadable_engines(graph(), plan(("16",) * 4))
    assert engines.pop("llama.cpp") == "reads GGUF, not safetensors"
    assert set(engines.values()) == {True}


def test_int4_and_w8a8_need_no_plugin_on_a_cpu_but_w8a16_does() -> None:
    assert loadable_engines(graph(), plan(("w4a16", "w8a8", "16", "16")))["vllm-cpu"] is True
    engines = loadable_engines(wide(), plan(("16", "w8a16", "16", "16")))
    assert engines["vllm"] is True
    assert engines["vllm-cpu"] == "model.layers.1.q is w8a16, for which vLLM on CPU has no kernel without llmpq's plugin"


def wide(in_features: int = 256, out_features: int = 128) -> LayerGraph:
    linear = replace(LINEARS[0], name="q", in_features=in_features, out_features=out_features)
    return graph(linears=(linear, replace(linear, name="k", out_features=64)))


@pytest.mark.parametrize(
    ("odd", "engine", "reason"),
    [
        (wide(in_features=300), "vllm", ".q has groups of 100 columns; the kernel knows 32, 64, 128"),
        (wide(out_features=100), "vllm-cpu", ".q has 164 rows with those fused to it; the kernel wants a multiple of 32"),
        (wide(in_features=211), "vllm-cpu", ".q has 211 columns; the kernel wants a multiple of 32"),
    ],
)
def test_sizes_that_no_kernel_takes_are_named(odd: LayerGraph, engine: str, reason: str) -> None:
    assert loadable_engines(odd, plan(("16", "w4a16", "16", "16")))[engine] == f"model.layers.1{reason}"
    assert loadable_engines(odd, plan(("16", "w8a8", "16", "16")))[engine] is True


def test_three_bits_and_fused_experts_stay_off_vllm() -> None:
    assert "3 bits" in str(loadable_engines(graph(), plan(("w3a16",) * 4))["vllm"])
    experts = graph(linears=(LINEARS[0], replace(LINEARS[4], name="mlp.experts.gate_up_proj", experts=4)))
    assert "experts of a layer are stored as one tensor" in str(loadable_engines(experts, plan(("16",) * 4))["vllm"])
    assert loadable_engines(experts, plan(("w8a8",) * 4))["transformers"] is True


def test_quantized_experts_and_conv1d_are_for_llmpq_alone() -> None:
    conv1d = graph(linears=tuple(replace(linear, transposed=True) for linear in LINEARS))
    experts = replace(LINEARS[4], name="mlp.experts.gate_up_proj", experts=4, pieces=("gate_proj", "up_proj"))
    for found, what in ((conv1d, "q_proj is a Conv1D"), (graph(linears=(experts,)), "gate_up_proj holds experts")):
        for options, loads in ((("16", "w8a8", "16", "16"), False), (("16",) * 4, True)):
            engines = loadable_engines(found, plan(options))
            assert engines["llmpq"] is True
            assert engines["transformers"] is True if loads else f"{what}" in str(engines["transformers"])
    assert "is a Conv1D, which is loaded turned" in str(loadable_engines(conv1d, plan(("w8a8",) * 4))["vllm"])
    assert loadable_engines(conv1d, plan(("16",) * 4))["vllm-cpu"] is True
