"""Shipped tables: which one answers for a device, loaded and conditioned at first use."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from llmpq.costs.attention_table import (
    AttentionBands,
    AttentionPoints,
    AttentionTable,
    attention_bands,
    attention_hardware,
    attention_table,
)
from llmpq.costs.gemm_table import GemmBands, GemmTable, Measurements, condition_table, gemm_bands, hardware_of
from llmpq.costs.silicon import LATENCY_UNIT_S, Phase, System, arrays, systems
from llmpq.costs.soft_roofline import SoftRoofline
from llmpq.hardware.devices import DeviceType

# Devices that differ from a measured one in memory alone: (bandwidth scales the memory time).
_TWINS = {"A100-40": "A100-80"}


@dataclass(frozen=True, slots=True)
class Source:
    """The system whose tables answer for a device type, with the bandwidth of that type."""

    system: System
    twin: bool

    @property
    def provenance(self) -> str:
        return self.system.provenance + (", memory time scaled by bandwidth" if self.twin else "")


def source_of(device_type: DeviceType) -> Source | None:
    """None: nothing was measured on this type."""
    measured = _TWINS.get(device_type.name, device_type.name)
    system = next((system for system in systems().values() if system.device_type == measured), None)
    if system is None or dict(device_type.flops).get("bf16") != system.peak("bfloat16"):
        return None  # a type of a cluster file may take the name of one of the library
    twin = device_type.name in _TWINS
    return Source(replace(system, bandwidth_bytes_per_s=device_type.bandwidth_bytes_per_s) if twin else system, twin)


def has_gemm_table(source: Source, dtype: str) -> bool:
    return f"{source.system.name}/{dtype}/latency" in arrays("gemm")


def attention_table_name(source: Source, phase: Phase, dtype: str, kv_dtype: str, head_dim: int) -> str | None:
    """The measured table of these dtypes and the nearest head size; of any dtypes where these were not measured."""
    start = f"{source.system.name}/{phase}/"
    names = [
        name.removesuffix("/latency") for name in arrays("attention") if name.startswith(start) and name.endswith("/latency")
    ]

    def distance(name: str) -> tuple[bool, bool, float]:
        _, _, table_dtype, table_kv, size = name.split("/")
        return table_dtype != dtype, table_kv != kv_dtype, abs(float(np.log2(head_dim / int(size))))

    return min(names, key=distance, default=None)


@cache
def load_gemm_table(system: str, dtype: str) -> GemmTable:
    parts = ("tokens", "shapes", "latency", "roofline", "kernels")
    tokens, shapes, latency, roofline, kernels = (arrays("gemm")[f"{system}/{dtype}/{part}"].astype(np.float64) for part in parts)
    measured = Measurements(tokens, shapes, latency * LATENCY_UNIT_S)
    return condition_table(hardware_of(systems()[system], dtype), SoftRoofline(*roofline.tolist()), kernels, measured)


@cache
def load_gemm_bands(system: str, dtype: str) -> GemmBands:
    return gemm_bands(load_gemm_table(system, dtype))


@cache
def load_attention_table(name: str) -> AttentionTable:
    points, latency, roofline = (
        arrays("attention")[f"{name}/{part}"].astype(np.float64) for part in ("points", "latency", "roofline")
    )
    system, phase, dtype, kv_dtype, head_dim = name.split("/")
    named: Phase = "prefill" if phase == "prefill" else "decode"
    hardware = attention_hardware(systems()[system], named, dtype, kv_dtype, int(head_dim))
    return attention_table(hardware, SoftRoofline(*roofline.tolist()), AttentionPoints(points, latency * LATENCY_UNIT_S))


@cache
def load_attention_bands(name: str) -> AttentionBands:
    return attention_bands(load_attention_table(name))
