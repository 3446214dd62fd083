"""Schemes that vLLM chooses for the linears of a checkpoint, from its config alone; run by the engine environment's Python."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.engines.vllm_log_probs import set_environment

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def main() -> None:
    """A line of JSON for each directory: name -> scheme, or null where the linear is not quantized."""
    set_environment(None)
    for directory in sys.argv[1:]:
        print(json.dumps(schemes(json.loads((Path(directory) / "config.json").read_text()))))


def schemes(config: dict[str, Any]) -> dict[str, Any]:
    """Of the fused linears, of what they are made of, and of the head."""
    import torch
    from vllm.model_executor.layers.quantization.compressed_tensors import (  # type: ignore[import-not-found]
        compressed_tensors,
    )

    quantization = compressed_tensors.CompressedTensorsConfig.from_config(config["quantization_config"])
    parts = [part for linear in LINEARS for part in parts_of(linear)]
    names = [f"model.layers.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in parts]
    found = {}
    for name in (*names, "lm_head"):
        quantization.packed_modules_mapping = FUSED
        found[name] = described(quantization, torch.nn.Linear(1, 1), name)
    return found


def parts_of(linear: str) -> list[str]:
    """The linear, and those that vLLM fuses into it."""
    block, _, name = linear.rpartition(".")
    return [linear, *(f"{block}.{part}" for part in FUSED.get(name, ()))]


def described(quantization: Any, layer: Any, name: str) -> dict[str, Any] | None:
    scheme, settings = quantization.get_scheme(layer, name), quantization.get_scheme_dict(layer, name)
    if scheme is None:
        return None
    weights, inputs = settings["weights"], settings["input_activations"]
    return {
        "scheme": type(scheme).__name__,
        "format": settings["format"],
        "num_bits": weights.num_bits,
        "strategy": str(getattr(weights.strategy, "value", weights.strategy)),
        "group_size": weights.group_size,
        "symmetric": weights.symmetric,
        "dynamic_inputs": None if inputs is None else inputs.dynamic,
    }


if __name__ == "__main__":
    main()
