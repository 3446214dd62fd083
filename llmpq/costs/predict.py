"""Predicted latency of single operations: from a measured table where there is one, else by roofline, with a band each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmpq.costs.attention_table import ELEMENT_BYTES, attention_hardware
from llmpq.costs.band import ROOFLINE_16_BIT, ROOFLINE_ATTENTION, ROOFLINE_QUANTIZED
from llmpq.costs.gemm_table import OUTPUT_BYTES, hardware_of
from llmpq.costs.peaks import attention_at_efficiency, row_factor, seconds_at_efficiency
from llmpq.costs.shipped import (
    Source,
    attention_table_name,
    has_gemm_table,
    load_attention_bands,
    load_attention_table,
    load_gemm_bands,
    load_gemm_table,
    source_of,
)
from llmpq.costs.silicon import ACTIVATION_BYTES, PEAKS, WEIGHT_BYTES, Phase, canonical_device, gemm_dtype
from llmpq.errors import InputError
from llmpq.hardware.devices import DeviceType, device_types

Array = NDArray[np.float64]
Roofline = Callable[[DeviceType, str, float, float], float]
LAUNCHES_PER_LAYER = 12  # that the overhead of a layer stands for (devices.yaml)
_KV_DTYPES = {"bf16": "bfloat16", "fp16": "bfloat16", "16": "bfloat16", "bfloat16": "bfloat16", "fp8": "fp8"}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, the ends of their 90 % band, and what they rest on: "table of <system> (<engine>)" or "roofline"."""

    latency_s: Array
    low_s: Array
    high_s: Array
    provenance: str


def gemm_latency_s(device_type: str, precision: str, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Array:
    """Seconds of y [m, n] = x [m, k] W^T with W [n, k]; m, n, k broadcast.

    precision: bf16 (or 16), w8a16, w4a16, w8a8, fp8, fp8_block. Devices of the library without a table at that precision
    are predicted by roofline; `gemm_estimate` says which it was, with a band.
    Raises ClusterError for an unknown device type, InputError for an unknown precision; both name what is known.
    """
    device, dtype = _device(device_type), gemm_dtype(precision)
    source = gemm_source(device, dtype)
    flat, shape = _broadcast(m, n, k)
    if source is None:
        return roofline_gemm_s(device, dtype, *flat).reshape(shape)
    table = load_gemm_table(source.system.name, dtype)
    return table.latency_s(flat[0], flat[1], flat[2], hardware_of(source.system, dtype)).reshape(shape)


def gemm_estimate(device_type: str, precision: str, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Estimate:
    """`gemm_latency_s` with its band and provenance."""
    dtype = gemm_dtype(precision)
    source = gemm_source(_device(device_type), dtype)
    latency = gemm_latency_s(device_type, precision, m, n, k)
    if source is None:
        wide = ROOFLINE_16_BIT if dtype == "bfloat16" else ROOFLINE_QUANTIZED
        return Estimate(latency, latency * wide.low, latency * wide.high, "roofline")
    flat, _ = _broadcast(m, n, k)
    table, bands = load_gemm_table(source.system.name, dtype), load_gemm_bands(source.system.name, dtype)
    return _with_band(latency, bands.factors(table, *flat), source)


def gemm_band(device_type: str, precision: str, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> tuple[Array, Array]:
    """The ends of the 90 % band around `gemm_latency_s`, seconds."""
    estimate = gemm_estimate(device_type, precision, m, n, k)
    return estimate.low_s, estimate.high_s


def attention_latency_s(
    device_type: str,
    phase: Phase,
    batch_size: ArrayLike,
    new_tokens: ArrayLike,
    context: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: int,
    kv_dtype: str = "bf16",
    compute_dtype: str = "bf16",
) -> Array:
    """Seconds of attention: `new_tokens` of each of `batch_size` sequences see `context` positions, their own included.

    All but head size and dtypes broadcast. A head size that was not measured takes the efficiency of the nearest that was.
    Errors and fallback as `gemm_latency_s`; InputError also for a context shorter than the new tokens.
    """
    device = _device(device_type)
    (*axes, new), shape = _broadcast(batch_size, context, heads, kv_heads, new_tokens)
    points = np.stack(axes, -1)
    _check_attention(phase, points, new)
    dtype, kv, (source, name) = (
        _dtype(compute_dtype),
        _dtype(kv_dtype),
        _attention(device, phase, compute_dtype, kv_dtype, head_dim),
    )
    if source is None or name is None:
        return _roofline_attention(device, points, new, head_dim, dtype, kv).reshape(shape)
    hardware = attention_hardware(source.system, phase, dtype, kv, head_dim)
    return load_attention_table(name).latency_s(points, new, hardware).reshape(shape)


def attention_estimate(
    device_type: str,
    phase: Phase,
    batch_size: ArrayLike,
    new_tokens: ArrayLike,
    context: ArrayLike,
    heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: int,
    kv_dtype: str = "bf16",
    compute_dtype: str = "bf16",
) -> Estimate:
    """`attention_latency_s` with its band and provenance."""
    what = (batch_size, new_tokens, context, heads, kv_heads, head_dim, kv_dtype, compute_dtype)
    latency = attention_latency_s(device_type, phase, *what)
    source, name = _attention(_device(device_type), phase, compute_dtype, kv_dtype, head_dim)
    if source is None or name is None:
        return Estimate(latency, latency * ROOFLINE_ATTENTION.low, latency * ROOFLINE_ATTENTION.high, "roofline")
    (*axes, _), _ = _broadcast(batch_size, context, heads, kv_heads, latency)
    factors = load_attention_bands(name).factors(load_attention_table(name), np.stack(axes, -1))
    return _with_band(latency, factors, source)


def gemm_source(device: DeviceType, dtype: str) -> Source | None:
    source = source_of(device)
    return source if source is not None and has_gemm_table(source, dtype) else None


def _attention(device: DeviceType, phase: Phase, compute: str, kv: str, head_dim: int) -> tuple[Source | None, str | None]:
    source = source_of(device)
    return source, attention_table_name(source, phase, _dtype(compute), _dtype(kv), head_dim) if source else None


def _device(name: str) -> DeviceType:
    return device_types()[canonical_device(name)]


def _broadcast(*axes: ArrayLike) -> tuple[list[Array], tuple[int, ...]]:
    wide = np.broadcast_arrays(*(np.asarray(axis, np.float64) for axis in axes))
    return [axis.ravel() for axis in wide], wide[0].shape


def _with_band(latency: Array, factors: Array, source: Source) -> Estimate:
    low, high = (latency * factors[:, side].reshape(latency.shape) for side in range(2))
    return Estimate(latency, low, high, source.provenance)


def roofline_gemm_s(device: DeviceType, dtype: str, m: Array, n: Array, k: Array) -> Array:
    """Seconds by the peaks of the device at the efficiencies of its class, and one launch."""
    read = np.array([row_factor(device, rows) for rows in m]) if dtype == "bfloat16" else 1.0
    nbytes = read * WEIGHT_BYTES[dtype] * n * k + ACTIVATION_BYTES[dtype] * m * k + OUTPUT_BYTES * m * n
    return roofline_s(device, PEAKS[dtype], 2 * m * n * k, nbytes) + device.overhead_s / LAUNCHES_PER_LAYER


def _roofline_attention(device: DeviceType, points: Array, new: Array, head_dim: int, dtype: str, kv: str) -> Array:
    rows, context, heads, kv_heads = points.T
    nbytes = 2 * rows * head_dim * (context * kv_heads * ELEMENT_BYTES[kv] + new * heads * ELEMENT_BYTES[dtype])
    flops = 4 * rows * heads * head_dim * new * (context - (new - 1) / 2)
    return roofline_s(device, PEAKS[dtype], flops, nbytes, attention_at_efficiency)


def roofline_s(device: DeviceType, dtype: str, flops: Array, nbytes: Array, one: Roofline = seconds_at_efficiency) -> Array:
    """`seconds_at_efficiency` of arrays, or that of attention."""
    compute, traffic = (one(device, dtype, *unit) for unit in ((1.0, 0.0), (0.0, 1.0)))
    return np.maximum(compute * flops, traffic * nbytes)


def _dtype(name: str) -> str:
    if name not in _KV_DTYPES:
        raise InputError(f"attention dtype {name!r} is unknown; known are {', '.join(_KV_DTYPES)}")
    return _KV_DTYPES[name]


def _check_attention(phase: str, points: Array, new: Array) -> None:
    if phase not in get_args(Phase):
        raise InputError(f"phase {phase!r} is unknown; known are {', '.join(get_args(Phase))}")
    if np.any(points <= 0) or np.any(new <= 0):
        raise InputError("attention: found a size of 0 or less; batch size, tokens, context and heads are at least 1")
    if np.any(new > points[:, 1]):
        raise InputError("attention: context is shorter than the new tokens; it counts the positions seen at the end")
    if phase == "decode" and np.any(new != 1):
        raise InputError(f"attention: decode has one new token a sequence, found {new.max():.0f}; call phase prefill")
