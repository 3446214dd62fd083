"""The frontend: a model without weights, its traced graph and its LayerGraph."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from llmpq.errors import TraceError
from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.traceable import IMPLEMENTATIONS
from llmpq.frontend.tracing import trace
from llmpq.graph import LayerGraph

__all__ = ["build_model", "layer_graph", "load_config", "trace", "trace_model"]

_NAMED = frozenset(
    str(name)
    for names in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    )
    for name in names.values()
)


def load_config(path: Path) -> PreTrainedConfig:
    """The configuration in a JSON file, or in a directory's config.json. Raises TraceError for what transformers cannot read."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise TraceError(f"{path}: is no configuration that transformers reads: {_one_line(error)}") from error
    return config


def build_model(config: PreTrainedConfig | Path | str, *, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """The causal language model of a configuration (or of its file or directory), in eval mode, without weights.

    Parameters are fp32 on the meta device; buffers (rotary frequencies, constants), which no checkpoint holds, are real.
    Architectures that transformers gives no sdpa attention are built with eager attention.
    Raises TraceError when transformers has no causal language model for the configuration.
    """
    if attn_implementation not in IMPLEMENTATIONS:
        raise TraceError(
            f"attention implementation {attn_implementation!r} is not supported; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    config = config if isinstance(config, PreTrainedConfig) else load_config(Path(config))
    text_config = copy.deepcopy(config.get_text_config(decoder=True))
    if hasattr(text_config, "quantization_config"):
        del text_config.quantization_config  # linears are ours to replace
    choices = (attn_implementation,) if attn_implementation == "eager" else (attn_implementation, "eager")
    reasons: list[str] = []
    for implementation in choices:
        try:
            return _build(_model_class(config, text_config), text_config, implementation)
        except (ValueError, ImportError) as error:
            reasons.append(_one_line(error))
    raise TraceError(f"a model of type {config.model_type!r} cannot be built: {reasons[-1]}")


def _model_class(config: PreTrainedConfig, text_config: PreTrainedConfig) -> Any:
    """The class that config.json names, where it takes the text part's configuration, else the causal language model for that."""
    name = next(iter(config.architectures or ()), "")
    named: Any = getattr(transformers, name) if name in _NAMED else None
    if named is not None and isinstance(text_config, named.config_class) and not text_config.is_encoder_decoder:
        return named
    for key in (type(text_config), type(config)):
        found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(key, None)
        if found is not None and issubclass(type(text_config), found.config_class):
            return found
    raise ValueError(f"transformers has no causal language model for {type(text_config).__name__}")


def _build(model_class: Any, config: PreTrainedConfig, attn_implementation: str) -> PreTrainedModel:
    with _ParametersOnMeta():
        model = model_class._from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    move_parameters(model)
    built: PreTrainedModel = model.eval()
    return built


def trace_model(model: nn.Module, name: str) -> tuple[torch.fx.GraphModule, LayerGraph]:
    """The traced graph of a model and the LayerGraph read from it."""
    traced = trace(model)
    return traced, layer_graph(model, traced, name)


class _ParametersOnMeta(TorchFunctionMode):
    """Makes `torch.empty`, where modules get the memory of their parameters, allocate on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {}), "device": "meta"} if func is torch.empty else (kwargs or {})
        return func(*args, **kwargs)


def move_parameters(model: nn.Module) -> None:
    """Put what was not allocated by `torch.empty` (norms filled with ones) on the meta device too; ties are kept."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in tuple(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not parameter.is_meta:
                moved.setdefault(parameter, nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad))
                module.register_parameter(name, moved[parameter])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
