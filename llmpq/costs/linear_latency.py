"""Latency of one linear: from a table of measurements where the device has one, else by roofline."""

from math import ceil

from llmpq.costs.peaks import row_factor, seconds_at_efficiency
from llmpq.graph import FLOAT_BYTES, Linear
from llmpq.hardware.cluster import Device
from llmpq.hardware.support import support
from llmpq.op_graph import distinct_experts
from llmpq.plan import ComputeDtype
from llmpq.precision import PRECISIONS, Precision

DTYPE = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
SIXTEEN = PRECISIONS["16"]


def roofline_s(device: Device, dtype: str, flops: float, nbytes: float) -> float:
    return seconds_at_efficiency(device.type, dtype, flops, nbytes) / device.speed


def linear_latency_s(
    device: Device, linear: Linear, precision: Precision, tokens: int, compute_dtype: ComputeDtype, engine: str
) -> float:
    """One linear over `tokens` tokens. A precision without a native kernel is unpacked to 16 bits first, at a cost."""
    used = precision if linear.is_quantizable else SIXTEEN
    native = support(engine, device.type, used).level == "native"
    multiplied = used if native else SIXTEEN
    measured = _measured_s(device, linear, multiplied, tokens, compute_dtype)
    if measured is None:
        return _roofline_s(device, linear, used, tokens, compute_dtype, native)
    if native:
        return measured
    each = linear.weight_bytes(used) / linear.experts + linear.in_features * linear.out_features * FLOAT_BYTES
    unpacked = _touched(linear, tokens) * each
    return measured + roofline_s(device, DTYPE[compute_dtype], 0, unpacked)


def _touched(linear: Linear, tokens: int) -> float:
    """Experts whose weights are read."""
    return 1.0 if linear.experts == 1 else distinct_experts(linear.experts, linear.active_experts, tokens)


def _measured_s(device: Device, linear: Linear, precision: Precision, tokens: int, compute_dtype: ComputeDtype) -> float | None:
    """From a table; experts one product each, of the tokens that fall to it on average."""
    from llmpq.costs.lookup import gemm_seconds

    if compute_dtype == "float32":
        return None
    touched = _touched(linear, tokens)
    each = ceil(tokens * linear.active_experts / touched)
    seconds = gemm_seconds(device.type, precision.name, each, linear.out_features, linear.in_features)
    return None if seconds is None else touched * seconds / device.speed


def _roofline_s(device: Device, linear: Linear, used: Precision, tokens: int, compute_dtype: ComputeDtype, native: bool) -> float:
    touched = _touched(linear, tokens)
    nbytes = linear.weight_bytes(used) * touched / linear.experts
    nbytes += tokens * (linear.in_features + linear.out_features) * linear.active_experts * FLOAT_BYTES
    at_16_bits = linear.in_features * linear.out_features * FLOAT_BYTES * touched
    dtype = DTYPE[compute_dtype]
    if not native:
        nbytes += 2 * at_16_bits
    elif used.activation_bits < 16:
        dtype = {"int": "int8", "fp8": "fp8"}[used.kind]
    if compute_dtype != "float32" and (not native or used == SIXTEEN):
        nbytes += at_16_bits * (row_factor(device.type, tokens * linear.active_experts / touched) - 1)
    flops = 2 * tokens * linear.in_features * linear.out_features * linear.active_experts
    return roofline_s(device, dtype, flops, nbytes)
