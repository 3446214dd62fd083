"""One latency at a time from the shipped tables, remembered: what the costs of layers are made of."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmpq.costs.attention_table import attention_hardware
from llmpq.costs.gemm_table import hardware_of
from llmpq.costs.shipped import attention_table_name, has_gemm_table, load_attention_table, load_gemm_table, source_of
from llmpq.costs.silicon import Phase, gemm_dtype
from llmpq.hardware.devices import DeviceType
from llmpq.precision import CachePrecision

# The fastest that 16-bit matrices larger than any cache are read in the tables, as a share of the peak. A benchmark that
# repeats one product finds a smaller one in the cache; a layer does not: the layers before it have driven it out.
COLD_READ = 0.90


@lru_cache(maxsize=200_000)
def gemm_seconds(device_type: DeviceType, precision: str, m: int, n: int, k: int) -> float | None:
    """Seconds of a product whose weights come from memory; None: the device has no table at this precision."""
    dtype, source = gemm_dtype(precision), source_of(device_type)
    if source is None or not has_gemm_table(source, dtype):
        return None
    hardware = hardware_of(source.system, dtype)
    tokens, outputs, inputs = (np.array([axis], np.float64) for axis in (m, n, k))
    row = _row(device_type, dtype, n, k)
    warm = float(load_gemm_table(source.system.name, dtype).between(row, tokens, outputs, inputs, hardware)[0])
    return max(warm, hardware.weight_bytes * n * k / (COLD_READ * hardware.bandwidth_bytes_per_s))


@lru_cache(maxsize=20_000)
def _row(device_type: DeviceType, dtype: str, n: int, k: int) -> NDArray[np.float64]:
    source = source_of(device_type)
    assert source is not None
    table = load_gemm_table(source.system.name, dtype)
    return table.log_latency(np.array([[n, k]], np.float64), hardware_of(source.system, dtype))


@lru_cache(maxsize=200_000)
def attention_seconds(
    device_type: DeviceType,
    rows: int,
    tokens: int,
    context: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    kept: CachePrecision = "16",
) -> float | None:
    """Seconds of attention with a cache at that precision that comes from memory; None: the device has no table."""
    phase: Phase = "decode" if tokens == 1 else "prefill"
    source, kv_dtype = source_of(device_type), "bfloat16" if kept == "16" else "fp8"
    name = attention_table_name(source, phase, "bfloat16", kv_dtype, head_dim) if source else None
    if source is None or name is None:
        return None
    hardware = attention_hardware(source.system, phase, "bfloat16", kv_dtype, head_dim)
    points = np.array([[rows, context, heads, kv_heads]], np.float64)
    warm = float(load_attention_table(name).latency_s(points, np.array([float(tokens)]), hardware)[0])
    cache_bytes = 2 * rows * context * kv_heads * head_dim * hardware.kv_bytes
    cold = device_type.cache_efficiency or COLD_READ
    return max(warm, cache_bytes / (cold * hardware.bandwidth_bytes_per_s))


def has_table(device_type: DeviceType, precision: str) -> bool:
    source = source_of(device_type)
    return source is not None and has_gemm_table(source, gemm_dtype(precision))
