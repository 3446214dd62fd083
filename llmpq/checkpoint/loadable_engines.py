"""Which engines load a compiled checkpoint as it is, and why the others do not."""

from collections.abc import Iterator

from llmpq.graph import LayerGraph, LayerKind, Linear
from llmpq.plan import Plan
from llmpq.precision import PRECISIONS, Precision

MARLIN_COLUMNS, MARLIN_ROWS = 128, 64  # vLLM's Marlin (CUDA): of these, multiples; the rows of a fused weight together
CPU_MULTIPLE = 32  # vLLM 0.32 on CPU: both sides of a 4-bit weight

Quantized = tuple[str, Linear, Precision]


def loadable_engines(graph: LayerGraph, plan: Plan) -> dict[str, bool | str]:
    """Engine -> True, or the reason why it does not load the checkpoint of this plan.

    `vllm` is vLLM on CUDA. vLLM's limits were measured on CPU and read from its source for CUDA.
    """
    quantized = tuple(quantized_linears(graph, plan))
    common = _vllm_reason(graph, quantized)
    reasons = {
        "llmpq": None,
        "transformers": None,
        "vllm": common or _marlin_reason(quantized) or _rows_reason(graph, plan),
        "vllm-cpu": common or _cpu_reason(quantized),
        "llama.cpp": "reads GGUF, not safetensors",
    }
    return {engine: True if reason is None else reason for engine, reason in reasons.items()}


def quantized_linears(graph: LayerGraph, plan: Plan) -> Iterator[Quantized]:
    """(full module name, linear, precision) of every linear that the plan quantizes, in layer order."""
    for layer, option in enumerate(plan.options):
        precision = PRECISIONS[option]
        for linear in graph.kind_of(layer).linears:
            if precision.is_quantized and linear.is_quantizable:
                yield f"{graph.layer_names[layer]}.{linear.name}", linear, precision


def _vllm_reason(graph: LayerGraph, quantized: tuple[Quantized, ...]) -> str | None:
    if any(linear.experts > 1 for kind in graph.kinds for linear in kind.linears):
        return "the experts of a layer are stored as one tensor, which vLLM was not seen to load"
    three = next((name for name, _, precision in quantized if precision.num_bits == 3), None)
    return None if three is None else f"{three} has 3 bits; vLLM's own kernels know 4 and 8"


def _marlin_reason(quantized: tuple[Quantized, ...]) -> str | None:
    for name, linear, precision in quantized:
        if precision.activation_bits == 16 and linear.in_features % MARLIN_COLUMNS:
            return f"{name} has {linear.in_features} columns; its weight-only kernels on CUDA want a multiple of {MARLIN_COLUMNS}"
    return None


def _rows_reason(graph: LayerGraph, plan: Plan) -> str | None:
    for layer, option in enumerate(plan.options):
        precision = PRECISIONS[option]
        if precision.is_quantized and precision.activation_bits == 16:
            for group, rows in _fused_rows(graph.kind_of(layer)).items():
                if rows % MARLIN_ROWS:
                    name = f"{graph.layer_names[layer]}: {group}"
                    return f"{name} has {rows} rows; its weight-only kernels on CUDA want a multiple of {MARLIN_ROWS}"
    return None


def _fused_rows(kind: LayerKind) -> dict[str, int]:
    """Rows of the weights that engines make of the fusion groups of a layer."""
    rows: dict[str, int] = {}
    for linear in kind.linears:
        if linear.is_quantizable:
            rows[linear.fusion_group] = rows.get(linear.fusion_group, 0) + linear.out_features
    return rows


def _cpu_reason(quantized: tuple[Quantized, ...]) -> str | None:
    for name, linear, precision in quantized:
        if precision.name == "w8a16":
            return f"{name} is w8a16, for which vLLM on CPU has no kernel without llmpq's plugin"
        sizes = (linear.out_features, linear.in_features)
        if precision.name == "w4a16" and any(size % CPU_MULTIPLE for size in sizes):
            return f"{name} is {sizes[0]} x {sizes[1]}; vLLM's 4-bit kernel on CPU wants multiples of {CPU_MULTIPLE}"
    return None
