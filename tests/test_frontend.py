"""The frontend: models without weights, and the bundled configurations."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig

from llmpq.errors import TraceError
from llmpq.frontend.build import build_model, load_config
from llmpq.frontend.models import bundled_configurations, resolve, trace_source
from tests.tiny_models import CONFIGS, EAGER_ONLY, tiny_config, tiny_model

PUBLISHED = {  # billions of parameters: model cards, safetensors metadata on the hub
    "llama-2-7b": 6.74,
    "llama-2-13b": 13.02,
    "llama-2-70b": 68.98,
    "llama-3-8b": 8.03,
    "llama-3-70b": 70.55,
    "mistral-7b": 7.24,
    "mixtral-8x7b": 46.70,
    "opt-13b": 12.85,
    "opt-30b": 29.97,
    "opt-66b": 65.72,
    "qwen2.5-7b": 7.61,
    "qwen2.5-32b": 32.5,
}


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_on_meta_and_buffers_are_real_and_right(family: str) -> None:
    built, reference = build_model(tiny_config(family)), tiny_model(family, "eager")
    assert all(parameter.is_meta for parameter in built.parameters())
    expected = dict(reference.named_buffers())
    assert dict(built.named_buffers()).keys() == expected.keys()
    assert all(torch.equal(buffer, expected[name]) for name, buffer in built.named_buffers())
    assert not built.training


@pytest.mark.parametrize("family", CONFIGS)
def test_ties_survive(family: str) -> None:
    built, reference = build_model(tiny_config(family)), tiny_model(family, "eager")
    assert list(dict(built.named_parameters())) == list(dict(reference.named_parameters()))


def test_architectures_without_sdpa_are_built_with_eager_attention() -> None:
    assert {family: build_model(tiny_config(family)).config._attn_implementation for family in EAGER_ONLY} == dict.fromkeys(
        EAGER_ONLY, "eager"
    )


def test_the_configuration_that_was_given_stays_as_it_was() -> None:
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": "compressed-tensors"}
    before = config.to_dict()
    build_model(config, attn_implementation="eager")
    assert config.to_dict() == before


def test_an_unknown_attention_implementation_is_refused() -> None:
    with pytest.raises(TraceError, match="'flash' is not supported; choose one of sdpa, eager"):
        build_model(tiny_config("llama"), attn_implementation="flash")


def test_a_configuration_of_no_causal_language_model_is_refused() -> None:
    with pytest.raises(
        TraceError, match=r"'clip_vision_model' cannot be built: .* no causal language model for CLIP"
    ):
        build_model(CLIPVisionConfig(hidden_size=12, num_hidden_layers=1))


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "no-such-model"}')
    with pytest.raises(TraceError, match=r"is no configuration that transformers reads: .*no-such-model"):
        load_config(path)


def test_a_configuration_that_contradicts_itself_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}')
    with pytest.raises(TraceError, match=r"is no configuration that transformers reads: .*30") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_every_bundled_configuration_has_a_published_size() -> None:
    assert set(bundled_configurations()) == set(PUBLISHED)


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_bundled_configurations_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    _, graph = trace_source(resolve(name, weights=False))
    assert graph.model == name
    assert graph.parameters == pytest.approx(billions * 1e9, rel=0.01)
