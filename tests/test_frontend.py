"""The frontend: models without weights, and the bundled configurations."""

from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig

from llmpq.errors import TraceError
from llmpq.frontend.build import build_model, load_config
from tests.tiny_models import CONFIGS, EAGER_ONLY, tiny_config, tiny_model


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
    with pytest.raises(TraceError, match=r"'clip_vision_model' cannot be built: .* no causal language model for CLIP"):
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
