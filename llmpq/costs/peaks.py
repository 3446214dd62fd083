"""Roofline at peaks: seconds of arithmetic and of memory traffic, each at its class's efficiency."""

from llmpq.hardware.devices import DeviceType


def seconds_at_efficiency(device_type: DeviceType, dtype: str, flops: float, nbytes: float) -> float:
    """The larger of the two; a dtype that the device lacks runs at the rate of fp16, or else of fp32."""
    peaks = dict(device_type.flops)
    peak = peaks.get(dtype, peaks.get("fp16", peaks["fp32"]))
    compute = flops / (peak * device_type.prefill_efficiency)
    return max(compute, nbytes / (device_type.bandwidth_bytes_per_s * device_type.decode_efficiency))
