"""Local devices: the accelerators of this machine, matched to the library and compared with the torch build."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmpq.hardware.cluster_spec import ClusterSpec, DeviceEntry, device_names
from llmpq.hardware.devices import DeviceKind, DeviceType, closest_type, device_types, find_card_type

_CPU_CORES = 8  # of the library's CPU (data/devices.yaml)
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class LocalCard:
    """A card as torch reports it; `architecture` is sm75 or gfx942."""

    name: str
    memory_bytes: int
    kind: DeviceKind
    architecture: str
    capability: tuple[int, int]


def discover() -> ClusterSpec:
    """This machine: its cards, or its CPU when there is none."""
    import torch

    cards = local_cards()
    if not cards:
        return _cpu()
    return describe(cards, tuple(torch.cuda.get_arch_list()))


def local_cards() -> tuple[LocalCard, ...]:
    """The CUDA or ROCm cards that torch sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(_card(torch.cuda.get_device_properties(index), torch.version.hip is not None) for index in range(count))


def describe(cards: tuple[LocalCard, ...], architectures: tuple[str, ...]) -> ClusterSpec:
    """The cluster of `cards`, with notices where `architectures` (torch.cuda.get_arch_list) has no kernels for one of them."""
    entries, notices = [], []
    for card in cards:
        device_type = find_card_type(card.name, card.memory_bytes)
        if device_type is None:
            device_type = _stand_in(card)
            notices.append(f"{card.name} is not in the library: {device_type.source}; describe it in a cluster file")
        memory = card.memory_bytes
        entries.append(DeviceEntry(device_type, 1, "localhost", memory, min(device_type.reserve_bytes, memory // 2)))
    for name, card in zip(device_names(tuple(entries)), cards):
        if not has_kernels(card, architectures):
            notices.append(_no_kernels(name, card, architectures))
    return ClusterSpec("this machine", tuple(entries), notices=tuple(notices))


def has_kernels(card: LocalCard, architectures: tuple[str, ...]) -> bool:
    """True if a binary of the same major version and no later minor, or PTX no later than the card, is in the build."""
    if card.kind == "rocm":
        return card.architecture in architectures
    built = [match for name in architectures if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name))]
    for form, major, minor in (match.groups() for match in built):
        version = int(major), int(minor)
        if version <= card.capability and (form == "compute" or version[0] == card.capability[0]):
            return True
    return False


def _no_kernels(name: str, card: LocalCard, architectures: tuple[str, ...]) -> str:
    built = " ".join(architecture.replace("_", "") for architecture in architectures) or "no card"
    remedy = "a cu126 build or llama.cpp" if card.kind == "cuda" and card.capability < (7, 5) else "another torch build"
    return f"{name} is {card.architecture}, this torch build has kernels for {built}: use {remedy}"


def _card(properties: Any, is_rocm: bool) -> LocalCard:
    capability = int(properties.major), int(properties.minor)
    architecture = properties.gcnArchName.split(":")[0] if is_rocm else f"sm{capability[0]}{capability[1]}"
    return LocalCard(properties.name, int(properties.total_memory), "rocm" if is_rocm else "cuda", architecture, capability)


def _stand_in(card: LocalCard) -> DeviceType:
    like = closest_type(card.kind, card.capability, card.memory_bytes)
    name = re.sub(r"[^A-Z0-9]+", "-", re.sub(r"(?i)nvidia|geforce|amd", "", card.name).upper()).strip("-") or "CARD"
    return replace(
        like,
        name=name,
        memory_bytes=card.memory_bytes,
        compute_capability=card.capability if card.kind == "cuda" else None,
        source=f"bandwidth and flops are assumed to be those of {like.name}",
    )


def _cpu() -> ClusterSpec:
    cores, device_type, memory = _cores(), device_types()["CPU"], host_memory()
    reserve = min(device_type.reserve_bytes, memory // 2)
    entry = DeviceEntry(device_type, 1, "localhost", memory, reserve, speed=cores / _CPU_CORES)
    notice = f"no card was found; the speed of CPU:0 ({cores} cores) is assumed from the library's {_CPU_CORES}-core CPU"
    return ClusterSpec("this machine", (entry,), notices=(notice,))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes that a new process may use: what is available now, within the limit of its control group."""
    meminfo = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text("ascii")) if meminfo.exists() else None
    available = int(match[1]) * 1024 if match else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [Path(path).read_text("ascii").strip() for path in _MEMORY_LIMITS if Path(path).exists()]
    return min([available, *(int(limit) for limit in limits if limit.isdigit())])
