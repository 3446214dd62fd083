"""Calibrated layers: each is quantized for what the quantized layers before it compute."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from llmpq.errors import QuantizationError
from llmpq.frontend.build import build_model, trace_model
from llmpq.fx.split_linears import split_linears
from llmpq.graph import LayerGraph, Linear
from llmpq.precision import PRECISIONS, Precision
from llmpq.quantization import calibrated_layers
from llmpq.quantization.calibrated_layers import CalibratedLayers
from llmpq.quantization.fake_quantization import quantizable_linears
from llmpq.quantization.gptq import gptq
from llmpq.quantization.hessian import Factor, Hessian
from llmpq.quantization.layer_quantizer import LayerResult
from llmpq.quantization.packing import pack
from llmpq.quantization.quantizers import Gptq
from llmpq.quantization.rounding import quantize_activation_per_token
from tests.tiny_models import VOCABULARY, tiny_config, tiny_model

TOKENS = tuple(torch.randint(3, VOCABULARY, (160,), generator=torch.Generator().manual_seed(3)).tolist())
UP = "mlp.up_proj"


@cache
def traced(family: str) -> tuple[GraphModule, LayerGraph]:
    return trace_model(build_model(tiny_config(family)), "tiny")


def layers_of(
    family: str, options: Mapping[int, str], tensors: Mapping[str, Tensor], folder: Path, **values: Any
) -> CalibratedLayers:
    """A tiny model whose layers have these options; others stay at 16 bits."""
    module, graph = traced(family)
    precisions: dict[str, Precision] = {
        f"{graph.layer_names[layer]}.{linear.name}": PRECISIONS[option]
        for layer, option in options.items()
        for linear in graph.kind_of(layer).stored
        if linear.is_quantizable
    }
    quantizer = Gptq(module, TOKENS, "random", window=16, device=torch.device("cpu"), **values)
    return CalibratedLayers(quantizer, graph, precisions, tensors, torch.bfloat16, folder)


def stored(result: LayerResult, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the model with one layer's result in place of its weights."""
    found = {name: value for name, value in tensors.items() if name.removesuffix(".weight") not in result.weights}
    for module, weight in result.weights.items():
        found |= {f"{module}.{suffix}": part for suffix, part in pack(weight).items()}
    return found | dict(result.changed)


def test_the_second_layer_is_calibrated_behind_the_quantized_first(tmp_path: Path) -> None:
    """By hand: the model with its first layer quantized, the inputs of a linear of the second caught, and GPTQ on those."""
    model: Any = tiny_model("llama")
    tensors = dict(model.state_dict())
    layers = layers_of("llama", {0: "w3a16", 1: "w4a16"}, tensors, tmp_path)
    first = layers.quantize(0)
    layers.go_on(0, stored(first, tensors))
    second = layers.quantize(1)
    for name, weight in first.weights.items():
        model.get_submodule(name).weight.data = weight.dequantize()
    linear = model.model.layers[1].get_submodule(UP)
    hessian = Hessian(linear.in_features)
    linear.register_forward_pre_hook(lambda module, inputs: hessian.add(inputs[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor(TOKENS).view(10, 16), use_cache=False)
    factor = Factor.of(hessian.mean(), hessian.tokens)
    expected = gptq(linear.weight, PRECISIONS["w4a16"], factor)
    found = second.weights[f"model.layers.1.{UP}"]
    assert hessian.tokens == 160 and torch.equal(found.scale, expected.scale)
    assert float((found.codes == expected.codes).float().mean()) > 0.99
    assert second.report is not None and second.report.layer == 1 and 0 < second.report.error < 0.2


def test_layers_of_sixteen_bits_are_run_and_not_quantized(tmp_path: Path) -> None:
    tensors = dict(tiny_model("llama").state_dict())
    layers = layers_of("llama", {2: "w4a16"}, tensors, tmp_path)
    for layer in (0, 1):
        assert layers.quantize(layer) == LayerResult()
        layers.go_on(layer, tensors)
    assert len(layers.quantize(2).weights) == 7
    layers.go_on(2, {})  # nothing behind it is quantized: it need not run
    assert layers.quantize(3) == LayerResult()


@pytest.mark.parametrize("family", ["opt", "qwen2", "gemma3", "phi3", "gpt_neox", "mixtral", "gpt2", "bloom", "falcon"])
def test_biases_fused_weights_and_other_families_are_quantized_to_the_end(family: str, tmp_path: Path) -> None:
    model, graph = tiny_model(family), traced(family)[1]
    split_linears(model, [path for _, path, _ in quantizable_linears(graph)])
    tensors = dict(model.state_dict())
    layers = layers_of(family, {0: "w8a8", 1: "w4a16"}, tensors, tmp_path, smooth=True)
    for layer in range(2):
        result = layers.quantize(layer)
        assert result.weights and result.report is not None and result.report.rounded == ()
        assert 0 < result.report.error < 0.1
        layers.go_on(layer, stored(result, tensors))


def test_inputs_of_eight_bit_activations_are_rounded_before_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    add = Hessian.add

    def keep(self: Hessian, x: Tensor) -> None:
        seen.append(x)
        add(self, x)

    monkeypatch.setattr(Hessian, "add", keep)
    layers_of("llama", {0: "w8a8"}, dict(tiny_model("llama").state_dict()), tmp_path, smooth=False).quantize(0)
    assert seen and all(torch.allclose(quantize_activation_per_token(x), x, rtol=1e-4, atol=1e-6) for x in seen)


class Routed(nn.Module):
    """A layer of three experts, of which the last sees one token in sixteen and the middle one none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(3)])

    def forward(self, hidden: Tensor) -> Tensor:
        few = self.experts[2](hidden[:, :1])
        return torch.cat([few, self.experts[0](hidden[:, 1:])], 1)


def test_experts_have_a_hessian_each_and_rarely_routed_ones_are_rounded_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = dict(tiny_model("llama").state_dict())
    layers = layers_of("llama", {0: "w4a16"}, tensors, tmp_path)
    layer, names = Routed(), [f"experts.{index}" for index in range(3)]
    linears = tuple(Linear(name, 32, 32, False, "mlp", name) for name in names)
    monkeypatch.setattr(calibrated_layers.CalibratedLayers, "_kind_linears", lambda self, index: linears)
    monkeypatch.setattr(layers._run, "call", lambda module, window: module(torch.randn(1, 16, 32)))
    with torch.no_grad():
        result = layers._calibrate(0, layer, dict.fromkeys(names, PRECISIONS["w4a16"]), {})
    assert result.report is not None and len(result.weights) == 3
    assert result.report.rounded == ("model.layers.0.experts.1", "model.layers.0.experts.2")


def test_hessians_that_do_not_fit_at_once_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = dict(tiny_model("llama").state_dict())
    passes: list[int] = []
    together = layers_of("llama", {0: "w4a16"}, tensors, tmp_path).quantize(0)
    monkeypatch.setattr(calibrated_layers, "HESSIAN_BYTES", 4 * 2 * 32**2)
    layers = layers_of("llama", {0: "w4a16"}, tensors, tmp_path)
    call = layers._run.call

    def counted(module: nn.Module, window: int) -> Any:
        passes.append(window)
        return call(module, window)

    monkeypatch.setattr(layers._run, "call", counted)
    apart = layers.quantize(0)
    assert len(passes) == 3 * layers._run.num_windows  # qkv and o, gate and up, down alone
    assert apart.weights.keys() == together.weights.keys() and apart.report == together.report
    assert all(torch.equal(apart.weights[name].codes, weight.codes) for name, weight in together.weights.items())


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = dict(tiny_model("llama").state_dict())
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.full((48, 32), torch.nan)
    with pytest.raises(QuantizationError, match=r"model.layers.0.mlp.up_proj.weight: the weight holds 1536 values that are NaN"):
        layers_of("llama", {0: "w4a16"}, tensors, tmp_path).quantize(0)
