"""Silicon catalogue: measured tables that ship with llmpq, their names, provenance and arrays."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llmpq.bundled import bundled_yaml
from llmpq.errors import InputError
from llmpq.hardware.devices import find_device_type
from llmpq.suggest import did_you_mean

LATENCY_UNIT_S = 16e-6  # latencies are float16 multiples of it: relative error 0.05 %, up to 1 s
Phase = Literal["prefill", "decode"]

_DTYPES = {
    "bf16": "bfloat16",
    "16": "bfloat16",
    "fp16": "bfloat16",
    "w8a16": "int8_wo",
    "w4a16": "int4_wo",
    "w8a8": "sq",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
}
WEIGHT_BYTES = {"bfloat16": 2.0, "int8_wo": 1.0, "int4_wo": 0.5, "sq": 1.0, "fp8": 1.0, "fp8_block": 1.0}
ACTIVATION_BYTES = {"bfloat16": 2.0, "int8_wo": 2.0, "int4_wo": 2.0, "sq": 1.0, "fp8": 1.0, "fp8_block": 1.0}
PEAKS = {"bfloat16": "bf16", "int8_wo": "bf16", "int4_wo": "bf16", "sq": "int8", "fp8": "fp8", "fp8_block": "fp8"}


@dataclass(frozen=True, slots=True)
class System:
    """One device whose operations were measured, by one version of one engine."""

    name: str
    device_type: str
    bandwidth_bytes_per_s: float
    flops: tuple[tuple[str, float], ...]
    engine: str
    source: str
    licence: str

    @property
    def provenance(self) -> str:
        return f"table of {self.name} ({self.engine})"

    def peak(self, dtype: str) -> float:
        """Operations per second of the arithmetic that `dtype` multiplies in."""
        return dict(self.flops)[PEAKS[dtype]]


@cache
def systems() -> dict[str, System]:
    """The measured systems by name (a100_sxm, ...), in the order of the catalogue."""
    data = bundled_yaml("silicon/catalog.yaml")
    return {name: _read(name, entry, data) for name, entry in data["systems"].items()}


def _read(name: str, entry: dict[str, Any], data: dict[str, Any]) -> System:
    return System(
        name=name,
        device_type=entry["device_type"],
        bandwidth_bytes_per_s=float(entry["bandwidth"]),
        flops=tuple((dtype, float(value)) for dtype, value in entry["flops"].items()),
        engine=entry["engine"],
        source=data["source"],
        licence=data["licence"],
    )


def canonical_device(name: str) -> str:
    """The library's name for a device type or a measured system. Raises ClusterError for unknown names."""
    if name in systems():
        return systems()[name].device_type
    return find_device_type(name)[0].name


def gemm_dtype(precision: str) -> str:
    """The name of a precision in the tables. Raises InputError for a precision that no table could hold."""
    key = precision.strip().lower()
    if key in WEIGHT_BYTES:
        return key
    if key not in _DTYPES:
        known = tuple(_DTYPES)
        raise InputError(f"precision {precision!r} is unknown; GEMM tables know {', '.join(known)}{did_you_mean(key, known)}")
    return _DTYPES[key]


@cache
def arrays(kind: str) -> dict[str, NDArray[Any]]:
    """The arrays of `gemm` or `attention`, by name."""
    with as_file(files("llmpq") / "data" / "silicon" / f"{kind}.npz") as path, np.load(path) as stored:
        return {name: stored[name] for name in stored.files}
