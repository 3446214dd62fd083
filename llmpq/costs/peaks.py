"""Roofline at peaks: seconds of arithmetic and of memory traffic, each at its class's efficiency."""

from llmpq.hardware.devices import DeviceType


def seconds_at_efficiency(device_type: DeviceType, dtype: str, flops: float, nbytes: float) -> float:
    """The larger of the two; a dtype that the device lacks runs at the rate of fp16, or else of fp32."""
    return _larger_s(device_type, dtype, flops, nbytes, device_type.decode_efficiency)


def attention_at_efficiency(device_type: DeviceType, dtype: str, flops: float, nbytes: float) -> float:
    """The same of attention, whose bytes are keys and values."""
    return _larger_s(device_type, dtype, flops, nbytes, device_type.cache_efficiency or device_type.decode_efficiency)


def row_factor(device_type: DeviceType, rows: float) -> float:
    """How many times as long as with few rows a 16-bit product takes to read its weights."""
    reached = [factor for least, factor in device_type.row_steps if rows >= least]
    return reached[-1] if reached else 1.0


def _larger_s(device_type: DeviceType, dtype: str, flops: float, nbytes: float, memory_efficiency: float) -> float:
    peaks = dict(device_type.flops)
    peak = peaks.get(dtype, peaks.get("fp16", peaks["fp32"]))
    compute = flops / (peak * device_type.prefill_efficiency)
    return max(compute, nbytes / (device_type.bandwidth_bytes_per_s * memory_efficiency))
