"""Latency by roofline: the larger of arithmetic and memory traffic, each at its class's efficiency."""

from llmpq.graph import FLOAT_BYTES, LayerGraph, LayerKind, Linear
from llmpq.hardware.cluster import Device
from llmpq.hardware.support import support
from llmpq.plan import ComputeDtype
from llmpq.precision import Precision

_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def _seconds(device: Device, dtype: str, flops: float, nbytes: float) -> float:
    figures = device.type
    peaks = dict(figures.flops)
    peak = peaks.get(dtype, peaks.get("fp16", peaks["fp32"]))
    compute = flops / (peak * figures.prefill_efficiency)
    traffic = nbytes / (figures.bandwidth_bytes_per_s * figures.decode_efficiency)
    return max(compute, traffic) / device.speed


def linear_latency_s(
    device: Device, linear: Linear, precision: Precision, tokens: int, compute_dtype: ComputeDtype, engine: str
) -> float:
    """One linear over `tokens` tokens. A precision without a native kernel is unpacked to 16 bits first, at a cost."""
    used = precision if linear.is_quantizable else None
    touched = min(linear.experts, tokens * linear.active_experts)
    weights = linear.weight_bytes(precision) * touched // linear.experts
    nbytes = weights + tokens * (linear.in_features + linear.out_features) * linear.active_experts * FLOAT_BYTES
    dtype = _DTYPE[compute_dtype]
    if used is not None and used.is_quantized:
        if support(engine, device.type, precision).level == "native":
            dtype = {"int": "int8", "fp8": "fp8"}[used.kind] if used.activation_bits < 16 else dtype
        else:
            nbytes += 2 * linear.in_features * linear.out_features * FLOAT_BYTES
    flops = 2 * tokens * linear.in_features * linear.out_features * linear.active_experts
    return _seconds(device, dtype, flops, nbytes)


def layer_latency_s(
    device: Device,
    kind: LayerKind,
    precision: Precision,
    rows: int,
    tokens: int,
    context: int,
    compute_dtype: ComputeDtype,
    engine: str,
) -> float:
    """Seconds of one layer for `rows` sequences of `tokens` new tokens that attend to `context` positions at the end."""
    new = rows * tokens
    linears = sum(linear_latency_s(device, linear, precision, new, compute_dtype, engine) for linear in kind.linears)
    attention = kind.attention
    seen = min(context, attention.window or context)
    pairs = rows * tokens * (seen - min(tokens, seen) / 2)
    flops = 4 * pairs * attention.num_heads * attention.head_dim
    scores = _seconds(device, _DTYPE[compute_dtype], flops, rows * seen * kind.kv_bytes_per_token)
    return linears + scores + device.type.overhead_s / device.speed


def head_latency_s(device: Device, graph: LayerGraph, rows: int, compute_dtype: ComputeDtype) -> float:
    """Final norm, head and sampling for the last position of `rows` sequences."""
    weights = graph.hidden_size * graph.vocab_size
    nbytes = weights * FLOAT_BYTES + rows * graph.vocab_size * 3 * FLOAT_BYTES
    return _seconds(device, _DTYPE[compute_dtype], 2 * rows * weights, nbytes) + device.type.overhead_s / device.speed


def embedding_latency_s(device: Device, graph: LayerGraph, tokens: int, compute_dtype: ComputeDtype) -> float:
    """Gathering one row per token."""
    return (
        _seconds(device, _DTYPE[compute_dtype], 0, tokens * graph.hidden_size * 2 * FLOAT_BYTES)
        + device.type.overhead_s / device.speed
    )
