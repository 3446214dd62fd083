"""The dequantized reference against transformers and against weights dequantized by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq.checkpoint.manifest import verify
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.reference import dequantized_state, reference_model
from llmpq.checkpoint.shards import write_shards
from llmpq.precision import PRECISIONS
from llmpq.quantization import rounding
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.rounding import quantize_activation_per_token
from tests.loading import load_by_transformers
from tests.tiny_checkpoint import MIXED, MIXTRAL_LINEARS, graph, llama, plan, save_llama, save_mixtral

TOKENS = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(3))
both_heads = pytest.mark.parametrize("out", [True, False], indirect=True, ids=["tied", "untied"])


@pytest.fixture(scope="module")
def out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied: bool = getattr(request, "param", True)
    directory = tmp_path_factory.mktemp("reference")
    source = save_llama(directory / "tiny", tied)
    write_shards(directory / "out", Checkpoint.open(source), graph(tied), plan(), assets=source, build={})
    return Path(directory / "out")


def log_probabilities(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits.float().log_softmax(-1)
    return result


@both_heads
def test_transformers_loads_the_output_without_a_warning_and_agrees_within_the_noise_of_bf16(out: Path) -> None:
    model, said = load_by_transformers(out, torch.bfloat16)
    assert said == []
    difference = (log_probabilities(model) - log_probabilities(reference_model(out))).abs()
    assert float(difference.mean()) < 0.03 and float(difference.max()) < 0.25


@both_heads
def test_transformers_in_fp32_agrees_exactly_once_activations_are_scaled_alike(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "ACTIVATION_STEPS", 127.5)
    model, _ = load_by_transformers(out, torch.float32)
    torch.testing.assert_close(log_probabilities(model), log_probabilities(reference_model(out)), rtol=0, atol=1e-5)


def test_the_state_is_the_model_with_every_quantized_weight_rounded(out: Path) -> None:
    original = llama().state_dict()
    state = dict(dequantized_state(out))
    assert set(state) == set(original) and {tensor.dtype for tensor in state.values()} == {torch.float32}
    for name, tensor in original.items():
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        option = "16" if layer is None or "norm" in name else MIXED[layer]
        expected = tensor.float() if option == "16" else quantize_clipped(tensor, PRECISIONS[option]).dequantize()
        assert torch.equal(state[name], expected), name


def test_only_w8a8_linears_round_their_activations(out: Path) -> None:
    model: Any = reference_model(out)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(4))
    for layer, option in enumerate(MIXED):
        linear = model.model.layers[layer].mlp.up_proj
        seen = quantize_activation_per_token(x) if option == "w8a8" else x
        assert torch.equal(linear(x), torch.nn.functional.linear(seen, linear.weight))


def test_rounding_activations_changes_the_result_and_rounding_weights_changes_it_more(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = log_probabilities(reference_model(out))
    monkeypatch.setattr("llmpq.quantization.rounding.quantize_activation_per_token", lambda x: x)
    without = log_probabilities(reference_model(out))
    original = log_probabilities(llama().float())
    assert 0 < float((whole - without).abs().mean()) < float((without - original).abs().mean())


def test_a_tied_head_stays_one_parameter(out: Path) -> None:
    model: Any = reference_model(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight and not model.training


def test_a_mixture_of_experts_is_stored_under_the_names_of_its_modules_and_loads_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_mixtral(tmp_path / "mixtral")
    experts = graph(tied=False, linears=MIXTRAL_LINEARS, architecture="MixtralForCausalLM")
    write_shards(tmp_path / "out", Checkpoint.open(source), experts, plan(), assets=source, build={})
    assert verify(tmp_path / "out").engines["transformers"] is True
    monkeypatch.setattr(rounding, "ACTIVATION_STEPS", 127.5)
    model, said = load_by_transformers(tmp_path / "out", torch.float32)
    assert said == []
    torch.testing.assert_close(log_probabilities(model), log_probabilities(reference_model(tmp_path / "out")), rtol=0, atol=1e-5)
    original, _ = load_by_transformers(source, torch.float32)
    fused = original.state_dict()["model.layers.2.mlp.experts.gate_up_proj"]
    assert torch.equal(dict(dequantized_state(tmp_path / "out"))["model.layers.2.mlp.experts.gate_up_proj"], fused)
