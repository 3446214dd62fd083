"""Smoothing: which norms may take over scales, that folding changes nothing but rounding, and when it pays."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmpq.frontend.tracing import decoder_layers
from llmpq.precision import PRECISIONS
from llmpq.quantization.norm_edges import norm_edges
from llmpq.quantization.smoothing import smooth
from tests.tiny_models import tiny_model

W8A8 = PRECISIONS["w8a8"]
EDGES: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    "opt": {"self_attn_layer_norm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "final_layer_norm": ("fc1",)},
    "gemma3": {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    "gpt_neox": {"input_layernorm": ("attention.query_key_value",), "post_attention_layernorm": ("mlp.dense_h_to_4h",)},
    "mixtral": {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
}


class Captured:
    """The second layer of a tiny model, and a call of it on what the first makes of two windows."""

    def __init__(self, family: str) -> None:
        model: Any = tiny_model(family)
        self.layer = list(decoder_layers(model).values())[1]
        self._inputs: list[tuple[Any, Any]] = []
        handle = self.layer.register_forward_pre_hook(self._keep, with_kwargs=True)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _ in range(2):
                model(input_ids=torch.randint(3, 64, (1, 12), generator=generator), use_cache=False)
        handle.remove()

    def _keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs.append((args, kwargs))

    def call(self, layer: nn.Module, window: int) -> Any:
        args, kwargs = self._inputs[window]
        return layer(*args, **kwargs)

    def outputs(self) -> list[Tensor]:
        found = [self.call(self.layer, window) for window in range(2)]
        return [each if isinstance(each, Tensor) else each[0] for each in found]

    def linears(self) -> list[str]:
        return [path for path, module in self.layer.named_modules() if isinstance(module, nn.Linear)]

    def widen(self, norm: str, readers: tuple[str, ...]) -> None:
        """Makes outliers: two columns of what the norm writes grow 64-fold, the readers' columns shrink by as much."""
        with torch.no_grad():
            weight: Any = self.layer.get_submodule(norm).weight
            one = 1.0 if "RMSNorm" in type(self.layer.get_submodule(norm)).__name__ and self.is_gemma else 0.0
            weight[:2] = (weight[:2] + one) * 64 - one
            for path in readers:
                reader: Any = self.layer.get_submodule(path).weight
                reader[:, :2] /= 64

    @property
    def is_gemma(self) -> bool:
        return type(self.layer).__name__.startswith("Gemma")


@pytest.mark.parametrize("family", EDGES)
def test_norms_that_linears_alone_read_are_found_by_dataflow(family: str) -> None:
    captured = Captured(family)
    with torch.no_grad():
        found = norm_edges(captured.layer, captured.linears(), lambda: captured.call(captured.layer, 0))
    assert found == EDGES[family]


def test_a_norm_that_anything_else_reads_or_whose_linear_stays_at_16_bits_is_left_out() -> None:
    captured = Captured("llama")
    with torch.no_grad():
        without_up = [path for path in captured.linears() if path != "mlp.up_proj"]
        found = norm_edges(captured.layer, without_up, lambda: captured.call(captured.layer, 0))
        assert list(found) == ["input_layernorm"]
        captured.layer.get_submodule("input_layernorm").register_forward_hook(
            lambda module, inputs, output: output + 0 * output.tanh()
        )
        captured.layer.get_submodule("self_attn").register_forward_pre_hook(
            lambda module, args, kwargs: kwargs["hidden_states"].sum() and None, with_kwargs=True
        )
        found = norm_edges(captured.layer, captured.linears(), lambda: captured.call(captured.layer, 0))
        assert list(found) == ["post_attention_layernorm"]


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3", "gpt_neox"])
def test_outliers_are_moved_into_the_weights_and_the_layer_computes_the_same(family: str) -> None:
    captured = Captured(family)
    (norm, readers), *_ = EDGES[family].items()
    captured.widen(norm, readers)
    with torch.no_grad():
        before = captured.outputs()
        inputs = captured.layer.get_submodule(norm)
        seen: list[Tensor] = []
        inputs.register_forward_hook(lambda module, args, output: seen.append(output))
        captured.outputs()
        spread = [float(each.abs().amax((0, 1))[:2].max() / each.abs().amax((0, 1)).median()) for each in seen]
        changed = smooth(captured.layer, dict.fromkeys(captured.linears(), W8A8), captured.call, 2, torch.float32)
        assert f"{norm}.weight" in changed
        seen.clear()
        for ours, theirs in zip(captured.outputs(), before):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert float(seen[0].abs().amax((0, 1))[:2].max() / seen[0].abs().amax((0, 1)).median()) < spread[0] / 3
    for name, tensor in changed.items():
        assert torch.equal(tensor, captured.layer.get_parameter(name))


def test_sixteen_bit_activations_are_left_alone() -> None:
    captured = Captured("llama")
    before = {name: value.clone() for name, value in captured.layer.state_dict().items()}
    with torch.no_grad():
        assert (
            smooth(captured.layer, dict.fromkeys(captured.linears(), PRECISIONS["w4a16"]), captured.call, 2, torch.float32) == {}
        )
    assert all(torch.equal(value, before[name]) for name, value in captured.layer.state_dict().items())


def test_where_nothing_is_gained_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.quantization.smoothing.WORTH", 0.0)
    captured = Captured("llama")
    captured.widen("input_layernorm", EDGES["llama"]["input_layernorm"])
    before = {name: value.clone() for name, value in captured.layer.state_dict().items()}
    with torch.no_grad():
        assert smooth(captured.layer, dict.fromkeys(captured.linears(), W8A8), captured.call, 2, torch.bfloat16) == {}
    assert all(torch.equal(value, before[name]) for name, value in captured.layer.state_dict().items())
