"""Device library: memory, bandwidth and arithmetic of the accelerators that llmpq knows, with sources."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from llmpq.bundled import bundled_yaml
from llmpq.errors import ClusterError
from llmpq.units import parse_bandwidth, parse_bytes, parse_time

DeviceKind = Literal["cuda", "rocm", "cpu"]
DTYPES = ("fp32", "fp16", "bf16", "int8", "fp8")
_RARE = {"rare": True}  # what llmpq.serialize writes only where it is not the default
_MAKERS = {"NVIDIA", "TESLA", "GEFORCE", "QUADRO", "AMD", "INSTINCT", "GENERATION", "GPU"}
_OTHER_CARD = {"TI", "SUPER", "LAPTOP", "MOBILE", "MAX", "D", "MIG", "NVL"}  # words that make it another card


@dataclass(frozen=True, slots=True)
class DeviceType:
    """What one device of this type has.

    memory_bytes: what the driver reports, less than the name says; reserve_bytes: context and allocator of one process.
    flops: (dtype, operations per second), dense, on tensor cores where there are any; a dtype that is absent is not supported.
    prefill_efficiency: the fraction of `flops` that a layer reaches on long prompts; decode_efficiency: the fraction of the
    bandwidth that it reaches with few sequences; overhead_s: launch overhead of one layer-forward.
    cache_efficiency: the fraction of the bandwidth at which attention reads keys and values; None: not measured.
    row_steps: (rows, factor), ascending: a 16-bit product of so many rows or more takes `factor` times as long to read its
    weights as one of few, since the library takes another tile; () where that was not measured.
    precisions: None, or the only precisions that the type can run (types defined in a cluster file).
    """

    name: str
    kind: DeviceKind
    memory_bytes: int
    reserve_bytes: int
    bandwidth_bytes_per_s: float
    flops: tuple[tuple[str, float], ...]
    compute_capability: tuple[int, int] | None
    prefill_efficiency: float
    decode_efficiency: float
    overhead_s: float
    source: str
    efficiency_source: str = "assumed"
    precisions: tuple[str, ...] | None = None
    cache_efficiency: float | None = field(default=None, metadata=_RARE)
    row_steps: tuple[tuple[int, float], ...] = field(default=(), metadata=_RARE)

    @property
    def supports_bf16(self) -> bool:
        return self.peak_flops("bf16") is not None

    def peak_flops(self, dtype: str) -> float | None:
        """Operations per second in `dtype` (fp32, fp16, bf16, int8, fp8); None: not supported."""
        return dict(self.flops).get(dtype)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A type, other names for it, and the words by which its driver reports it."""

    type: DeviceType
    aliases: tuple[str, ...]
    card: tuple[str, ...]


def device_types() -> dict[str, DeviceType]:
    """Every type of the library by name, in the order of the file."""
    return {entry.type.name: entry.type for entry in _library()}


def find_device_type(name: str) -> tuple[DeviceType, str | None]:
    """The type called `name`, in any case and spacing, and a notice when the name was read as another.

    A name without its size ("V100") means the smallest. Raises ClusterError with a suggestion for unknown names.
    """
    key = _key(name)
    for entry in _library():
        if key in (_key(entry.type.name), *map(_key, entry.aliases)):
            return entry.type, None
    sizes = [entry.type for entry in _library() if key == _key(_family(entry.type.name))]
    if not sizes:
        raise ClusterError(_unknown(name))
    smallest = min(sizes, key=lambda device_type: device_type.memory_bytes)
    among = f", the smallest of {', '.join(size.name for size in sizes)}" if len(sizes) > 1 else ""
    return smallest, f"{name.strip()} was read as {smallest.name}{among}"


def find_card_type(card: str, memory_bytes: int) -> DeviceType | None:
    """The type of a card by the name that its driver reports ("NVIDIA A100-SXM4-40GB") and its memory; None: not known."""
    words = tuple(word for word in re.findall(r"[A-Z0-9]+", card.upper()) if word not in _MAKERS)
    fits = [entry for entry in _library() if entry.card and words[: len(entry.card)] == entry.card]
    longest = max((len(entry.card) for entry in fits), default=0)
    if not fits or _OTHER_CARD & set(words[longest:]):
        return None
    return _closest_memory((entry.type for entry in fits if len(entry.card) == longest), memory_bytes)


def closest_type(kind: DeviceKind, compute_capability: tuple[int, int], memory_bytes: int) -> DeviceType:
    """The type of that kind with the nearest compute capability, then memory: a stand-in for a card that is not known."""

    def distance(device_type: DeviceType) -> int:
        major, minor = device_type.compute_capability or compute_capability
        return abs(10 * (major - compute_capability[0]) + minor - compute_capability[1])

    types = [device_type for device_type in device_types().values() if device_type.kind == kind]
    nearest = min(map(distance, types))
    return _closest_memory((device_type for device_type in types if distance(device_type) == nearest), memory_bytes)


def _closest_memory(types: Iterable[DeviceType], memory_bytes: int) -> DeviceType:
    return min(types, key=lambda device_type: abs(device_type.memory_bytes - memory_bytes))


def _key(name: str) -> str:
    words = [word for word in re.split(r"[\s_-]+", name.strip().upper()) if word not in _MAKERS]
    return re.sub(r"GB$", "", "".join(words))


def _family(name: str) -> str:
    return re.sub(r"-\d+$", "", name)


def _unknown(name: str) -> str:
    known = {_key(type_name): type_name for type_name in device_types()}
    close = get_close_matches(_key(name), known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(known[key] for key in close)}? " if close else ""
    return f"found device type {name.strip()!r}, which is not in the library; {hint}known are {', '.join(known.values())}"


@cache
def _library() -> tuple[_Entry, ...]:
    data = bundled_yaml("devices.yaml")
    return tuple(_read_entry(name, figures, data) for name, figures in data["devices"].items())


def _read_entry(name: str, figures: dict[str, Any], data: dict[str, Any]) -> _Entry:
    defaults, efficiency = data["kinds"][figures["kind"]], data["efficiencies"][figures["efficiency"]]
    capability = figures.get("compute_capability")
    device_type = DeviceType(
        name=name,
        kind=figures["kind"],
        memory_bytes=parse_bytes(figures["memory"]),
        reserve_bytes=parse_bytes(defaults["reserve"]),
        bandwidth_bytes_per_s=parse_bandwidth(figures["bandwidth"]),
        flops=tuple((dtype, figures["tflops"][dtype] * 1e12) for dtype in DTYPES if dtype in figures["tflops"]),
        compute_capability=parse_capability(capability) if capability else None,
        prefill_efficiency=efficiency["prefill"],
        decode_efficiency=efficiency["decode"],
        overhead_s=parse_time(defaults["overhead"]),
        source=f"{figures['source']}; memory: {figures.get('memory_source', data['memory_source'])}",
        efficiency_source=efficiency["source"],
        cache_efficiency=efficiency.get("cache"),
        row_steps=tuple(sorted(efficiency.get("row_steps", {}).items())),
    )
    return _Entry(device_type, tuple(figures.get("aliases", ())), tuple(figures.get("card", "").upper().split()))


def parse_capability(text: str) -> tuple[int, int]:
    """(8, 6) from "8.6"."""
    match = re.fullmatch(r"(\d{1,2})\.(\d)", str(text).strip())
    if match is None:
        raise ClusterError(f"found {text!r}, expected a compute capability such as 8.6")
    return int(match[1]), int(match[2])
