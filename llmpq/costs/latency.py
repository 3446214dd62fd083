"""Latency of linears, layers and ends: from tables of measurements where the device has them, else by roofline."""

from llmpq.costs.peaks import seconds_at_efficiency
from llmpq.graph import FLOAT_BYTES, Attention, LayerGraph, LayerKind, Linear
from llmpq.hardware.cluster import Device
from llmpq.hardware.devices import DeviceType
from llmpq.hardware.support import support
from llmpq.plan import ComputeDtype
from llmpq.precision import PRECISIONS, Precision

_DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_SIXTEEN = PRECISIONS["16"]


def _seconds(device: Device, dtype: str, flops: float, nbytes: float) -> float:
    return seconds_at_efficiency(device.type, dtype, flops, nbytes) / device.speed


def linear_latency_s(
    device: Device, linear: Linear, precision: Precision, tokens: int, compute_dtype: ComputeDtype, engine: str
) -> float:
    """One linear over `tokens` tokens. A precision without a native kernel is unpacked to 16 bits first, at a cost."""
    used = precision if linear.is_quantizable else _SIXTEEN
    native = support(engine, device.type, used).level == "native"
    multiplied = used if native else _SIXTEEN
    measured = _measured_linear_s(device, linear, multiplied, tokens, compute_dtype)
    if measured is None:
        return _roofline_linear_s(device, linear, used, tokens, compute_dtype, native)
    if native:
        return measured
    unpacked = linear.weight_bytes(used) + linear.in_features * linear.out_features * FLOAT_BYTES
    return measured + _seconds(device, _DTYPE[compute_dtype], 0, unpacked)


def _measured_linear_s(
    device: Device, linear: Linear, precision: Precision, tokens: int, compute_dtype: ComputeDtype
) -> float | None:
    """From a table; experts one product each, of the tokens that fall to it on average."""
    from llmpq.costs.lookup import gemm_seconds

    if compute_dtype == "float32":
        return None
    touched = min(linear.experts, tokens * linear.active_experts)
    each = -(-tokens * linear.active_experts // touched)
    seconds = gemm_seconds(device.type, precision.name, each, linear.out_features, linear.in_features)
    return None if seconds is None else touched * seconds / device.speed


def _roofline_linear_s(
    device: Device, linear: Linear, used: Precision, tokens: int, compute_dtype: ComputeDtype, native: bool
) -> float:
    touched = min(linear.experts, tokens * linear.active_experts)
    weights = linear.weight_bytes(used) * touched // linear.experts
    nbytes = weights + tokens * (linear.in_features + linear.out_features) * linear.active_experts * FLOAT_BYTES
    dtype = _DTYPE[compute_dtype]
    if not native:
        nbytes += 2 * linear.in_features * linear.out_features * FLOAT_BYTES
    elif used.activation_bits < 16:
        dtype = {"int": "int8", "fp8": "fp8"}[used.kind]
    flops = 2 * tokens * linear.in_features * linear.out_features * linear.active_experts
    return _seconds(device, dtype, flops, nbytes)


def attention_layer_s(
    device: Device, attention: Attention, rows: int, tokens: int, context: int, compute_dtype: ComputeDtype
) -> float:
    """Scores and values of one layer for `rows` sequences of `tokens` new tokens that see `context` positions at the end."""
    from llmpq.costs.lookup import attention_seconds

    seen = min(context, attention.window or context)
    if compute_dtype != "float32" and tokens <= seen:
        heads = (attention.num_heads, attention.num_kv_heads, attention.head_dim)
        measured = attention_seconds(device.type, rows, tokens, seen, *heads)
        if measured is not None:
            return measured / device.speed
    pairs = rows * tokens * (seen - min(tokens, seen) / 2)
    flops = 4 * pairs * attention.num_heads * attention.head_dim
    kv_bytes = 2 * attention.num_kv_heads * attention.head_dim * FLOAT_BYTES
    return _seconds(device, _DTYPE[compute_dtype], flops, rows * seen * kv_bytes)


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
    scores = attention_layer_s(device, kind.attention, rows, tokens, context, compute_dtype)
    return linears + scores + device.type.overhead_s / device.speed


def head_latency_s(device: Device, graph: LayerGraph, rows: int, compute_dtype: ComputeDtype) -> float:
    """Final norm, head and sampling for the last position of `rows` sequences."""
    from llmpq.costs.lookup import gemm_seconds

    weights = graph.hidden_size * graph.vocab_size
    logits = rows * graph.vocab_size * 3 * FLOAT_BYTES
    overhead = device.type.overhead_s / device.speed
    measured = gemm_seconds(device.type, "16", rows, graph.vocab_size, graph.hidden_size) if compute_dtype != "float32" else None
    if measured is not None:
        return measured / device.speed + _seconds(device, _DTYPE[compute_dtype], 0, logits) + overhead
    return _seconds(device, _DTYPE[compute_dtype], 2 * rows * weights, weights * FLOAT_BYTES + logits) + overhead


def embedding_latency_s(device: Device, graph: LayerGraph, tokens: int, compute_dtype: ComputeDtype) -> float:
    """Gathering one row per token."""
    return (
        _seconds(device, _DTYPE[compute_dtype], 0, tokens * graph.hidden_size * 2 * FLOAT_BYTES)
        + device.type.overhead_s / device.speed
    )


def latency_provenance(devices: tuple[Device, ...], precisions: tuple[Precision, ...], engine: str) -> str:
    """What the products of these devices rest on: "table", "roofline", or which for which device type."""
    found = {device.type.name: _provenance(device.type, precisions, engine) for device in devices}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{name}: {what}" for name, what in found.items())


def _provenance(device_type: DeviceType, precisions: tuple[Precision, ...], engine: str) -> str:
    from llmpq.costs.lookup import has_table

    levels = {precision: support(engine, device_type, precision).level for precision in precisions}
    runs = [precision.name if level == "native" else "16" for precision, level in levels.items() if level != "unsupported"]
    tables = [name for name in dict.fromkeys(runs) if has_table(device_type, name)]
    without = [name for name in dict.fromkeys(runs) if name not in tables]
    if not tables:
        return "roofline"
    return "table" if not without else f"table, {' and '.join(without)} by roofline"
