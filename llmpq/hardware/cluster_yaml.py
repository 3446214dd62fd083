"""Cluster file: reads the YAML description of a cluster."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from llmpq.errors import InputError
from llmpq.hardware.cluster_spec import ClusterSpec, DeviceEntry, check_count, device_names
from llmpq.hardware.devices import DTYPES, DeviceKind, DeviceType, device_types, find_device_type, parse_capability
from llmpq.hardware.link import BETWEEN_HOSTS, WITHIN_HOST, Link, PairLink
from llmpq.hardware.link_table import link_kinds
from llmpq.hardware.yaml_cursor import Cursor, read_document
from llmpq.precision import parse_precision
from llmpq.units import parse_bandwidth, parse_bytes, parse_flops, parse_number, parse_time

_ENTRY_KEYS = ("type", "count", "memory", "reserve", "speed", "host", "price_per_hour")
_FIGURES = ("flops", "bandwidth", "precisions", "kind", "compute_capability")
_KINDS: dict[str, DeviceKind] = {"cuda": "cuda", "rocm": "rocm", "cpu": "cpu"}
_Types = dict[str, DeviceType]
N = TypeVar("N", int, float)

LEAST_WITHOUT_UNIT = 1e6  # bytes, bytes or operations per second


def read_cluster_yaml(text: str, source: str) -> ClusterSpec:
    """The cluster that `text` describes; `source` names it in errors, which are ClusterErrors with line and column."""
    root = read_document(text, source).keys(("name", "devices", "links"), required=("devices",))
    entries, notices = _entries(root["devices"])
    names = device_names(entries)
    links = root["links"].keys(("within_host", "between_hosts", "pairs")) if "links" in root else {}
    return ClusterSpec(
        name=root["name"].text() if "name" in root else Path(source).stem,
        entries=entries,
        within_host=_link(links["within_host"], WITHIN_HOST) if "within_host" in links else WITHIN_HOST,
        between_hosts=_link(links["between_hosts"], BETWEEN_HOSTS) if "between_hosts" in links else BETWEEN_HOSTS,
        pairs=_pairs(links["pairs"], names) if "pairs" in links else (),
        notices=notices,
    )


def _entries(devices: Cursor) -> tuple[tuple[DeviceEntry, ...], tuple[str, ...]]:
    own_types: _Types = {}
    entries, notices = [], []
    for index, cursor in enumerate(devices.items()):
        entry, notice = _entry(cursor, index, own_types)
        entries.append(entry)
        notices += [notice] if notice else []
    check_count(sum(entry.count for entry in entries), devices.place)
    return tuple(entries), tuple(dict.fromkeys(notices))


def _entry(cursor: Cursor, index: int, own_types: _Types) -> tuple[DeviceEntry, str | None]:
    keys = cursor.keys(_ENTRY_KEYS + _FIGURES, required=("type",))
    device_type, notice = _type(keys, own_types)
    memory = _positive(keys["memory"], parse_bytes, "24 MiB") if "memory" in keys else None
    reserve = _measure(keys["reserve"], parse_bytes, "512 MiB") if "reserve" in keys else None
    if reserve is not None and reserve >= (memory or device_type.memory_bytes):
        raise keys["reserve"].error(f"found {keys['reserve'].text()!r}, expected less than the memory of the device")
    return DeviceEntry(
        type=device_type,
        count=keys["count"].parse(_parse_count) if "count" in keys else 1,
        host=keys["host"].text() if "host" in keys else f"(devices[{index}])",
        memory_bytes=memory,
        reserve_bytes=reserve,
        speed=_positive(keys["speed"], parse_number) if "speed" in keys else 1.0,
        price_per_hour=keys["price_per_hour"].parse(parse_number) if "price_per_hour" in keys else None,
    ), notice


def _type(keys: dict[str, Cursor], own_types: _Types) -> tuple[DeviceType, str | None]:
    """A type of the library or of an earlier entry, or a new one where the entry has figures."""
    name = keys["type"].text()
    figures = [key for key in _FIGURES if key in keys]
    known = own_types.get(name) or device_types().get(name.upper())
    if not figures:
        return (own_types[name], None) if name in own_types else keys["type"].parse(_library_type)
    if known:
        raise keys[figures[0]].error(f"{name} is already defined; give these figures under a new name, or use speed and memory")
    own_types[name] = _new_type(name, keys)
    return own_types[name], None


def _library_type(name: str) -> tuple[DeviceType, str | None]:
    try:
        return find_device_type(name)
    except InputError as error:
        raise InputError(f"{error}; or give a new type its own memory, flops and bandwidth") from error


def _new_type(name: str, keys: dict[str, Cursor]) -> DeviceType:
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise keys["type"].error(f"found {name!r}, expected a name of letters, digits, '-', '_' and '.'")
    for key in ("memory", "flops", "bandwidth"):
        if key not in keys:
            raise keys["type"].error(f"{name} is not in the library and has no {key!r}; add its own memory, flops and bandwidth")
    capability = keys["compute_capability"].parse(parse_capability) if "compute_capability" in keys else None
    kind = keys["kind"].parse(_parse_kind) if "kind" in keys else ("cuda" if capability else "cpu")
    if kind == "cuda" and capability is None:
        raise keys["kind"].error("kind cuda needs compute_capability; add it, for instance compute_capability: 8.6")
    like = device_types()[{"cuda": "RTX3090", "rocm": "MI210", "cpu": "CPU"}[kind]]
    return DeviceType(
        name=name,
        kind=kind,
        memory_bytes=_positive(keys["memory"], parse_bytes),
        reserve_bytes=0,
        flops=_flops(keys["flops"], has_bf16=capability is None or capability >= (8, 0)),
        bandwidth_bytes_per_s=_positive(keys["bandwidth"], parse_bandwidth, "300 GB/s"),
        compute_capability=capability,
        prefill_efficiency=like.prefill_efficiency,
        decode_efficiency=like.decode_efficiency,
        overhead_s=like.overhead_s,
        source=keys["type"].source,
        efficiency_source=f"assumed: as {like.name}",
        precisions=_precisions(keys["precisions"]) if "precisions" in keys else None,
    )


def _flops(cursor: Cursor, has_bf16: bool) -> tuple[tuple[str, float], ...]:
    """A mapping by dtype, or one number for all float dtypes."""
    import yaml

    if isinstance(cursor.node, yaml.ScalarNode):
        rate = _positive(cursor, parse_flops, "65 TFLOPS")
        return tuple((dtype, rate) for dtype in ("fp32", "fp16", "bf16") if has_bf16 or dtype != "bf16")
    rates = cursor.keys(DTYPES, required=("fp16",))
    return tuple((dtype, _positive(rates[dtype], parse_flops, "65 TFLOPS")) for dtype in DTYPES if dtype in rates)


def _precisions(cursor: Cursor) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.parse(lambda text: parse_precision(text).name) for item in cursor.items()))


def _link(cursor: Cursor, default: Link, *more: str) -> Link:
    """Of a kind of the link table, or of a bandwidth and a latency."""
    keys = cursor.keys((*more, "kind", "bandwidth", "latency"), required=more)
    if "kind" in keys:
        if other := keys.keys() & {"bandwidth", "latency"}:
            raise keys["kind"].error(f"kind and {min(other)} exclude each other; leave one of them out")
        return keys["kind"].parse(Link.of_kind)
    if "bandwidth" not in keys:
        raise cursor.error(f"found neither bandwidth nor kind; give bandwidth: 12 GB/s, or a kind of {', '.join(link_kinds())}")
    latency = keys["latency"].parse(_parse_latency) if "latency" in keys else default.latency_s
    return Link(_positive(keys["bandwidth"], parse_bandwidth, "12 GB/s"), latency, "given")


def _pairs(cursor: Cursor, names: tuple[str, ...]) -> tuple[PairLink, ...]:
    pairs: dict[tuple[str, str], Cursor] = {}
    for item in cursor.items():
        ends = item.keys(("from", "to", "kind", "bandwidth", "latency"), required=("from", "to"))
        source, target = _device(ends["from"], names), _device(ends["to"], names)
        if source == target or (source, target) in pairs:
            wrong = "stays within one device" if source == target else "is given twice"
            raise item.error(f"the link from {source} to {target} {wrong}; remove it")
        pairs[source, target] = item
    return tuple(PairLink(*ends, _link(item, WITHIN_HOST, "from", "to")) for ends, item in pairs.items())


def _device(cursor: Cursor, names: tuple[str, ...]) -> str:
    found = next((name for name in names if name.casefold() == cursor.text().strip().casefold()), None)
    if found is None:
        raise cursor.error(f"found {cursor.text()!r}, which is no device of this cluster; known are {', '.join(names)}")
    return found


def _measure(cursor: Cursor, parser: Callable[[str], N], example: str = "") -> N:
    """What the cursor says; of a measure such as the example no number so small that its unit must be missing."""
    value = cursor.parse(parser)
    if example and 0 < value < LEAST_WITHOUT_UNIT and _is_number(cursor.text()):
        raise cursor.error(f"found {cursor.text()!r} without a unit, expected a figure such as {example}")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _positive(cursor: Cursor, parser: Callable[[str], N], example: str = "") -> N:
    value = _measure(cursor, parser, example)
    if value <= 0:
        raise cursor.error(f"found {cursor.text()!r}, expected more than 0")
    return value


def _parse_latency(text: str) -> float:
    seconds = parse_time(text)
    if seconds >= 1.0 and _is_number(text):
        raise InputError(f"found {text!r} without a unit, which is seconds; expected a time such as 20 us")
    return seconds


def _parse_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip()) or int(text) == 0:
        raise InputError(f"found {text!r}, expected a whole number of devices, at least 1")
    return int(text)


def _parse_kind(text: str) -> DeviceKind:
    if text not in _KINDS:
        raise InputError(f"found {text!r}, expected one of {', '.join(_KINDS)}")
    return _KINDS[text]
