"""Tiny models: random weights for every class of transformers' causal language models, shrunk by the names of config fields."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SIZES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "data" / "coverage.yaml").read_text(encoding="utf-8"))

VOCABULARY: int = SIZES["fields"]["vocab_size"]


def classes() -> dict[str, tuple[str, ...]]:
    """Class name -> the model types that transformers maps to it."""
    found: dict[str, list[str]] = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found.setdefault(str(name), []).append(model_type)
    return {name: tuple(types) for name, types in sorted(found.items())}


def tiny_config(name: str) -> PreTrainedConfig:
    """The text configuration of a class with every size that SIZES names made small, overrides last."""
    config_class: type[PreTrainedConfig] = getattr(transformers, name).config_class
    if "text_config" in config_class.sub_configs:
        config_class = type(config_class().get_text_config())
    return config_class(**_shrunk(config_class))


def _shrunk(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    overrides: Mapping[str, Any] = SIZES["overrides"].get(config_class.model_type) or {}
    fields = {field.name: field.default for field in dataclasses.fields(config_class)}
    sizes = {name: size for name, size in SIZES["fields"].items() if name in fields and _is_size(fields[name])}
    for sign, also in SIZES["with"].items():
        sizes |= {name: size for name, size in also.items() if sign in fields and name in fields}
    tokens = {name: token for name, token in SIZES["tokens"].items() if name in fields}
    return {name: value for name, value in {**sizes, **tokens, **overrides}.items() if value != "default"}


def _is_size(default: Any) -> bool:
    return default is None or (isinstance(default, int) and not isinstance(default, bool) and default > 0)


def tiny_model(name: str, config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    """Random weights, fp32, always the same, in eval mode."""
    torch.manual_seed(0)
    model_class: Any = getattr(transformers, name)
    if not isinstance(config, model_class.config_class):
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class._from_config(copy.deepcopy(config), attn_implementation=attn_implementation, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    built: PreTrainedModel = model.eval()
    return built
