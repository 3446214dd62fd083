"""Cluster specification: what a user wrote about a cluster, in a file or a short string, before devices are numbered."""

import re
from collections import Counter
from dataclasses import dataclass

from llmpq.errors import ClusterError
from llmpq.hardware.devices import DeviceType, find_device_type
from llmpq.hardware.link import BETWEEN_HOSTS, WITHIN_HOST, Link, PairLink

MAX_DEVICES = 1024  # a slip of the finger, not a cluster: plans are for tens of devices
_ITEM = re.compile(r"(?:(\d+)\s*[xX*]\s*)?([A-Za-z][\w .-]*|\d{4}\w*)")


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """`count` equal devices on one host. None: the default of the type (memory, reserve), or unknown (price)."""

    type: DeviceType
    count: int
    host: str
    memory_bytes: int | None = None
    reserve_bytes: int | None = None
    speed: float = 1.0
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    name: str
    entries: tuple[DeviceEntry, ...]
    within_host: Link = WITHIN_HOST
    between_hosts: Link = BETWEEN_HOSTS
    pairs: tuple[PairLink, ...] = ()
    notices: tuple[str, ...] = ()


def device_names(entries: tuple[DeviceEntry, ...]) -> tuple[str, ...]:
    """TYPE:index in the order of the entries, counted per type over the whole cluster."""
    seen: Counter[str] = Counter()
    names = []
    for entry in entries:
        names += [f"{entry.type.name}:{seen[entry.type.name] + i}" for i in range(entry.count)]
        seen[entry.type.name] += entry.count
    return tuple(names)


def parse_short(text: str) -> ClusterSpec:
    """ "3xT4,1xV100-32": each comma group on a host of its own; "3xT4+1xV100-32": on one host; links are assumed."""
    entries, notices = [], []
    for index, group in enumerate(text.split(",")):
        for item in group.split("+"):
            entry, notice = _parse_item(item, f"host{index}", text)
            entries.append(entry)
            notices += [notice] if notice else []
    check_count(sum(entry.count for entry in entries), f"cluster {text!r}")
    return ClusterSpec(text.strip(), tuple(entries), notices=tuple(dict.fromkeys(notices)))


def check_count(count: int, where: str) -> None:
    if count > MAX_DEVICES:
        raise ClusterError(f"{where}: {count} devices, expected at most {MAX_DEVICES}")


def _parse_item(item: str, host: str, text: str) -> tuple[DeviceEntry, str | None]:
    match = _ITEM.fullmatch(item.strip())
    if match is None:
        raise ClusterError(
            f"cluster {text!r}: found {item.strip()!r}, expected COUNTxTYPE such as 3xT4 "
            "(comma: another host, plus: the same host), or the path of a .yaml file"
        )
    count = int(match[1] or 1)
    if count == 0:
        raise ClusterError(f"cluster {text!r}: the count of {match[2].strip()} is 0; expected at least 1, or leave it out")
    try:
        device_type, notice = find_device_type(match[2])
    except ClusterError as error:
        raise ClusterError(f"cluster {text!r}: {error}") from error
    return DeviceEntry(device_type, count, host), notice
