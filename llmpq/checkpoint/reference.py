"""The dequantized reference of an output directory: its model in fp32, quantization noise included, packing excluded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.checkpoint.output_checks import read_plan
from llmpq.checkpoint.quantization_config import module_precisions
from llmpq.checkpoint.reader import CONFIG_FILE, read_json
from llmpq.checkpoint.shards import stage_tensors
from llmpq.fx.split_linears import joined_state, split_linears
from llmpq.precision import Precision
from llmpq.quantization.packing import suffixes, unpack
from llmpq.quantization.rounded_cache import round_cache
from llmpq.quantization.rounding import round_inputs


def dequantized_tensors(
    tensors: Mapping[str, Tensor], precisions: Mapping[str, Precision], dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """(parameter name, tensor in `dtype`) of stored tensors; quantized modules, a precision each, become their `weight`."""
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        precision = precisions.get(module)
        if precision is None or suffix not in suffixes(precision):
            yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor
        elif suffix == "weight_scale":
            parts = {part: tensors[f"{module}.{part}"] for part in suffixes(precision)}
            yield f"{module}.weight", unpack(parts, precision).dequantize(dtype)


def dequantized_state(out: Path, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """(parameter name, tensor) of the whole model, stage by stage; a tied head on another stage comes as its copy, linears that
    were quantized as such (experts, Conv1D) upright and on their own."""
    precisions = module_precisions(read_json(out / CONFIG_FILE))
    for stage in range(len(read_plan(out).stages)):
        yield from dequantized_tensors(stage_tensors(out, stage), precisions, dtype)


def reference_model(out: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The transformers model of `out` with dequantized weights; w8a8 linears round their activations per token, attention sees
    keys and values as the plan's cache holds them."""
    from transformers import AutoConfig

    config = read_json(out / CONFIG_FILE)
    plain = AutoConfig.for_model(**{key: value for key, value in config.items() if key not in ("quantization_config", "dtype")})
    precisions = module_precisions(config)
    model_class: Any = _model_class(plain)
    with torch.device("meta"):
        empty = model_class(plain)
    state = joined_state(empty, dict(dequantized_state(out, dtype)), precisions)
    model: nn.Module = model_class.from_pretrained(None, config=plain, state_dict=state, dtype=dtype)
    round_activations(model, precisions)
    round_cache(model, read_plan(out).kv_precision)
    return model.eval()


def _model_class(config: Any) -> Any:
    import transformers

    named = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    return named or transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def round_activations(model: nn.Module, precisions: Mapping[str, Precision]) -> None:
    """Make every module of 8-bit activations round its input per token; experts in one parameter become linears for that."""
    rounded = {name: precision for name, precision in precisions.items() if precision.activation_bits == 8}
    split_linears(model, rounded)
    for name, precision in rounded.items():
        model.get_submodule(name).register_forward_pre_hook(round_inputs(precision))
