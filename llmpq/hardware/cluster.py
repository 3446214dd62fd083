"""Cluster: devices and the links between them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.errors import ClusterError
from llmpq.hardware.cluster_spec import ClusterSpec, DeviceEntry, device_names, parse_short
from llmpq.hardware.devices import DeviceType
from llmpq.hardware.link import SAME_DEVICE, Link, PairLink
from llmpq.hardware.link_table import implied_kind
from llmpq.units import format_bytes

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["Cluster", "Device", "Link", "PairLink"]

TOGETHER = "+"  # between the names of the devices of a group
A_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator. `speed` is relative to the figures of its type; `price_per_hour` None: not known.

    Or a group of `ranks` identical ones of a host that run a stage together by tensor parallelism, `within` the slowest link
    between them: memory and speed are those of each.
    """

    name: str
    type: DeviceType
    memory_bytes: int
    reserve_bytes: int
    speed: float
    host: str
    price_per_hour: float | None
    ranks: int = field(default=1, metadata={"rare": True})
    within: Link | None = field(default=None, metadata={"rare": True})

    def __post_init__(self) -> None:
        if not 0 <= self.reserve_bytes < self.memory_bytes:
            found = f"a reserve of {self.reserve_bytes} bytes of {self.memory_bytes}"
            raise ClusterError(f"device {self.name}: {found}; expected less than the memory")
        if self.speed <= 0:
            raise ClusterError(f"device {self.name}: speed is {self.speed}; expected more than 0")

    def __str__(self) -> str:
        speed = "" if self.speed == 1 else f", speed {self.speed:g}"
        price = "" if self.price_per_hour is None else f", {self.price_per_hour:g} per hour"
        return f"{self.name} on host {self.host}: {format_bytes(self.capacity_bytes)} for the model{speed}{price}"

    @property
    def capacity_bytes(self) -> int:
        """What weights, KV cache and activations may use."""
        return self.memory_bytes - self.reserve_bytes

    @property
    def members(self) -> tuple[str, ...]:
        """The names of a group's devices; of a single one its own."""
        return tuple(self.name.split(TOGETHER)) if self.ranks > 1 else (self.name,)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Devices in the order of the file; `pairs` override the links within and between hosts; `notices` are for the user."""

    name: str
    devices: tuple[Device, ...]
    within_host: Link
    between_hosts: Link
    pairs: tuple[PairLink, ...]
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [device.name.casefold() for device in self.devices]
        if not names or len(set(names)) < len(names):
            found = ", ".join(names) or "none"
            raise ClusterError(f"cluster {self.name!r}: found devices {found}; expected at least one, each name once")
        for pair in self.pairs:
            self.device(pair.source), self.device(pair.target)

    @classmethod
    def load(cls, spec: str | Path) -> "Cluster":
        """A path to a .yaml file, a short string such as "3xT4,1xV100-32", or "local": the devices of this machine."""
        if isinstance(spec, str) and spec.strip().casefold() == "local":
            return cls.discover()
        if isinstance(spec, Path) or spec.strip().casefold().endswith((".yaml", ".yml")):
            return cls.from_yaml(_read(Path(spec)), str(spec))
        return cls._from_spec(parse_short(spec))

    @classmethod
    def from_yaml(cls, text: str, source_name: str) -> "Cluster":
        """The cluster that the YAML `text` describes; `source_name` names it in errors."""
        from llmpq.hardware.cluster_yaml import read_cluster_yaml

        return cls._from_spec(read_cluster_yaml(text, source_name))

    @classmethod
    def discover(cls) -> "Cluster":
        """The cards of this machine, or its CPU; notices tell which cards this torch build has no kernels for."""
        from llmpq.hardware.local_devices import discover

        return cls._from_spec(discover())

    @classmethod
    def _from_spec(cls, spec: ClusterSpec) -> "Cluster":
        owners = [entry for entry in spec.entries for _ in range(entry.count)]
        devices = tuple(_device(name, entry) for name, entry in zip(device_names(spec.entries), owners))
        return cls(spec.name, devices, _within_host(spec.within_host, devices), spec.between_hosts, spec.pairs, spec.notices)

    def __str__(self) -> str:
        """A line per device: name, host, memory for the model, speed and price where they are told."""
        return "\n".join((f"cluster {self.name}", *(f"  {device}" for device in self.devices)))

    def __rich__(self) -> "Text":
        """The same lines, for rich."""
        from rich.text import Text

        return Text(str(self))

    def device(self, name: str) -> Device:
        """The device of that name, in any case; of names joined by "+" the group. Raises ClusterError that lists the names."""
        key = name.strip().casefold()
        for device in self.devices:
            if device.name.casefold() == key:
                return device
        if TOGETHER in key:
            return self.group(tuple(self.device(part) for part in key.split(TOGETHER)))
        known = ", ".join(device.name for device in self.devices)
        raise ClusterError(f"cluster {self.name!r} has no device {name!r}; it has {known}")

    def group(self, members: tuple[Device, ...]) -> Device:
        """Identical devices of one host as one device. Raises ClusterError for others."""
        first, name = members[0], TOGETHER.join(member.name for member in members)
        alike = {replace(member, name="", price_per_hour=None) for member in members}
        if len(alike) > 1 or len({member.name for member in members}) < len(members):
            raise ClusterError(f"group {name}: a tensor-parallel group is of different devices of one host that are alike")
        links = (self.link(a.name, b.name) for a in members for b in members if a != b)
        return replace(first, name=name, ranks=len(members), within=max(links, key=_slowness))

    def link(self, source: str, target: str) -> Link:
        """The link from one named device to another: its pair, the reverse pair if only that is given, else by host.

        Between groups: the slowest between their devices.
        """
        start, end = self.device(source), self.device(target)
        if start == end:
            return SAME_DEVICE
        if TOGETHER in source + target and not {start, end} <= set(self.devices):
            return max((self.link(a, b) for a in start.members for b in end.members), key=_slowness)
        given = {(self.device(pair.source).name, self.device(pair.target).name): pair.link for pair in self.pairs}
        by_host = self.within_host if start.host == end.host else self.between_hosts
        return given.get((start.name, end.name)) or given.get((end.name, start.name)) or by_host


def _slowness(link: Link) -> float:
    return link.transfer_s(A_MEBIBYTE)


def _device(name: str, entry: DeviceEntry) -> Device:
    """Explicit memory is what the model may use; the reserve of the type counts only against the memory of the type."""
    memory = entry.type.memory_bytes if entry.memory_bytes is None else entry.memory_bytes
    default_reserve = entry.type.reserve_bytes if entry.memory_bytes is None else 0
    reserve = default_reserve if entry.reserve_bytes is None else entry.reserve_bytes
    return Device(name, entry.type, memory, reserve, entry.speed, entry.host, entry.price_per_hour)


def _within_host(link: Link, devices: tuple[Device, ...]) -> Link:
    """The link that was given, or the kind that the device types imply where nothing was."""
    hosts: dict[str, list[str]] = {}
    for device in devices:
        hosts.setdefault(device.host, []).append(device.type.name)
    kind = implied_kind(hosts.values()) if link.provenance == "assumed" else None
    return link if kind is None else Link.of_kind(kind.name)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        remedy = "give its path, or a short string such as 3xT4,1xV100-32"
        raise ClusterError(f"cluster file {path} does not exist; {remedy}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"cluster file {path} cannot be read as UTF-8 text: {error}") from error
