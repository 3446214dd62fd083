"""Fake quantization: what changes inside the block, and that it is undone."""

from typing import Any

import pytest
import torch

from llmpq.frontend.models import data_path, resolve, trace_source
from llmpq.graph import LayerGraph
from llmpq.precision import PRECISIONS
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.fake_quantization import fake_quantized, quantizable_linears
from llmpq.quantization.original import load_original
from llmpq.quantization.rounding import quantize_activation_per_token

DIRECTORY = data_path("models", "demo")


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    return trace_source(resolve("demo", weights=True))[1]


@pytest.mark.parametrize("option", ["w8a8", "w8a16", "w4a16"])
def test_layers_are_rounded_inside_the_block_and_restored_exactly(option: str, graph: LayerGraph) -> None:
    model: Any = load_original(DIRECTORY)
    precision = PRECISIONS[option]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linear, other = model.model.layers[3].mlp.up_proj, model.model.layers[4].mlp.up_proj
    x = torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain, beside = linear(x), other(x)
        with fake_quantized(model, graph, {3: precision, 5: PRECISIONS["16"]}):
            weight = quantize_clipped(before["model.layers.3.mlp.up_proj.weight"], precision).dequantize()
            seen = quantize_activation_per_token(x) if precision.activation_bits == 8 else x
            assert torch.equal(linear(x), torch.nn.functional.linear(seen, weight))
            assert torch.equal(other(x), beside)
        assert torch.equal(linear(x), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_are_restored_after_an_error(graph: LayerGraph) -> None:
    model: Any = load_original(DIRECTORY)
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.clone()
    with torch.inference_mode(), pytest.raises(KeyError), fake_quantized(model, graph, {0: PRECISIONS["w4a16"]}):
        assert not torch.equal(weight, before)
        raise KeyError
    assert torch.equal(weight, before)


def test_every_linear_of_a_layer_can_be_quantized_and_nothing_else(graph: LayerGraph) -> None:
    paths = [path for layer, path, _ in quantizable_linears(graph) if layer == 2]
    assert len(paths) == 7 and all(path.startswith("model.layers.2.") for path in paths)
