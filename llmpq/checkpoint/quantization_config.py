"""The quantization_config of a checkpoint: which module has which precision, as compressed-tensors writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmpq.errors import CheckpointError
from llmpq.precision import PRECISIONS, Precision

QUANT_METHOD = "compressed-tensors"
_TYPES = {"int": "int", "fp8": "float"}  # of the weights, by the kind of precision


def quantization_config(modules: Mapping[str, tuple[Precision, int]], ignore: Sequence[str]) -> dict[str, Any] | None:
    """The entry of config.json; None when no module is quantized.

    modules: full module name -> (precision, in_features). One group per precision and group size, with the exact names
    as targets (transformers compares them with module names, vLLM with the parts of its fused q/k/v and gate/up), and
    its own `format`.
    """
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name, (precision, in_features) in modules.items():
        if precision.is_quantized:
            groups.setdefault((precision.name, _stored_group_size(precision, in_features)), []).append(name)
    if not groups:
        return None
    schemes = [_scheme(PRECISIONS[name], size, targets) for (name, size), targets in sorted(groups.items(), key=_order)]
    formats = sorted({scheme["format"] for scheme in schemes})
    return {
        "quant_method": QUANT_METHOD,
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": scheme for index, scheme in enumerate(schemes)},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def module_precisions(config: Mapping[str, Any]) -> dict[str, Precision]:
    """Full module name -> precision of every quantized module of a config.json that llmpq wrote; the inverse of the above."""
    section = config.get("quantization_config")
    if section is None:
        return {}
    if section.get("quant_method") != QUANT_METHOD:
        found = section.get("quant_method")
        raise CheckpointError(f"config.json: quantized with {found!r}, expected {QUANT_METHOD}; compile the original")
    return {target: _precision(scheme) for scheme in section["config_groups"].values() for target in scheme["targets"]}


def _order(item: tuple[tuple[str, int | None], list[str]]) -> tuple[str, int]:
    (name, group_size), _ = item
    return name, group_size or 0


def _stored_group_size(precision: Precision, in_features: int) -> int | None:
    """None: one scale per row ("channel"), also where no divisor of the row makes a group."""
    size = precision.group_size_for(in_features)
    return None if size == in_features and precision.group_size != size else size


def _scheme(precision: Precision, group_size: int | None, targets: Sequence[str]) -> dict[str, Any]:
    dynamic = precision.activation_bits < 16
    return {
        "targets": list(targets),
        "weights": {
            "num_bits": precision.num_bits,
            "type": _TYPES[precision.kind],
            "symmetric": precision.symmetric,
            "strategy": "channel" if group_size is None else "group",
            "group_size": group_size,
            "dynamic": False,
        },
        "input_activations": _per_token(precision) if dynamic else None,
        "output_activations": None,
        "format": f"{_TYPES[precision.kind]}-quantized" if dynamic else "pack-quantized",
    }


def _per_token(precision: Precision) -> dict[str, Any]:
    kind = {"num_bits": precision.activation_bits, "type": _TYPES[precision.kind], "symmetric": True}
    return {**kind, "strategy": "token", "group_size": None, "dynamic": True}


def _precision(scheme: Mapping[str, Any]) -> Precision:
    activations = scheme["input_activations"]
    bits = (scheme["weights"]["num_bits"], 16 if activations is None else activations["num_bits"])
    kind = scheme["weights"]["type"]
    for precision in PRECISIONS.values():
        if _TYPES.get(precision.kind) == kind and (precision.num_bits, precision.activation_bits) == bits:
            return precision
    raise CheckpointError(f"config.json: {kind} weights of {bits[0]} bits with activations of {bits[1]}; compile the original")
