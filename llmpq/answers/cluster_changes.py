"""Cluster changes: devices added, removed or replaced, links changed, prices told, as a user writes them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmpq.errors import ClusterError, InputError
from llmpq.hardware.cluster import Cluster, Device, PairLink
from llmpq.hardware.link import Link
from llmpq.units import parse_bandwidth, parse_number, parse_time

ADD, REMOVE, REPLACE, LINK = "add", "remove", "replace", "link"


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """One alternative to a cluster: its words as the user gave them, and the cluster that it makes."""

    words: str
    cluster: Cluster


def changed(cluster: Cluster, verb: str, text: str) -> ClusterChange:
    """The cluster after `add 1xL4`, `remove T4:0`, `replace T4:0=L4` or `link between_hosts=25 Gbit/s`.

    Raises ClusterError or InputError for what cannot be read, or is not there.
    """
    verbs: dict[str, Callable[[Cluster, str], Cluster]] = {ADD: added, REMOVE: removed, REPLACE: replaced, LINK: linked}
    return ClusterChange(f"{verb} {text}", replace(verbs[verb](cluster, text), name=f"{cluster.name}, {verb} {text}"))


def added(cluster: Cluster, text: str) -> Cluster:
    """More devices as in a cluster string: each comma group on a new host; with a leading plus on the first device's host."""
    together = text.strip().startswith("+")
    more = Cluster.load(text.strip().removeprefix("+"))
    hosts = {host: _free_host(cluster, number) for number, host in enumerate(dict.fromkeys(d.host for d in more.devices))}
    devices = list(cluster.devices)
    for device in more.devices:
        host = cluster.devices[0].host if together else hosts[device.host]
        priced = replace(device, host=host, price_per_hour=_price_of(cluster, device))
        devices.append(replace(priced, name=_free_name(devices, device.type.name)))
    return replace(cluster, devices=tuple(devices), notices=(*cluster.notices, *more.notices))


def _free_host(cluster: Cluster, number: int) -> str:
    taken = {device.host for device in cluster.devices}
    return next(name for k in range(len(taken) + 1) if (name := f"added{number}{'+' * k}") not in taken)


def _free_name(devices: list[Device], kind: str) -> str:
    taken = {device.name for device in devices}
    return next(name for number in range(len(taken) + 1) if (name := f"{kind}:{number}") not in taken)


def _price_of(cluster: Cluster, like: Device) -> float | None:
    """What a device of that type costs here, where one is known."""
    return next(
        (d.price_per_hour for d in cluster.devices if d.type.name == like.type.name and d.price_per_hour is not None), None
    )


def removed(cluster: Cluster, text: str) -> Cluster:
    """Without the devices named, separated by commas, and their links."""
    gone = {cluster.device(name).name for name in text.split(",")}
    devices = tuple(device for device in cluster.devices if device.name not in gone)
    if not devices:
        raise ClusterError(f"cluster {cluster.name!r}: without {text} no device is left; remove fewer")
    pairs = tuple(
        pair for pair in cluster.pairs if not gone & {cluster.device(pair.source).name, cluster.device(pair.target).name}
    )
    return replace(cluster, devices=devices, pairs=pairs)


def replaced(cluster: Cluster, text: str) -> Cluster:
    """T4:0=L4: the named device is of another type, at its host and links."""
    name, _, kind = text.partition("=")
    if not kind.strip():
        raise InputError(f"--replace {text!r}: found no new type, expected DEVICE=TYPE such as T4:0=L4")
    old, new = cluster.device(name), Cluster.load(kind)
    if len(new.devices) != 1:
        raise InputError(f"--replace {text!r}: found {len(new.devices)} devices for one; expected DEVICE=TYPE such as T4:0=L4")
    others = [device for device in cluster.devices if device != old]
    fresh = new.devices[0]
    price = _price_of(cluster, fresh)
    placed = replace(fresh, name=_free_name(others, fresh.type.name), host=old.host, price_per_hour=price)

    def renamed(end: str) -> str:
        return placed.name if cluster.device(end) == old else end

    pairs = tuple(PairLink(renamed(pair.source), renamed(pair.target), pair.link) for pair in cluster.pairs)
    devices = tuple(placed if device == old else device for device in cluster.devices)
    return replace(cluster, devices=devices, pairs=pairs, notices=(*cluster.notices, *new.notices))


def linked(cluster: Cluster, text: str) -> Cluster:
    """within_host=25 GB/s, between_hosts=100 Gbit/s,10 us or T4:0-L4:0=2 GB/s; without a latency it stays what it was."""
    where, _, figures = text.partition("=")
    bandwidth, _, latency = figures.partition(",")
    if not bandwidth.strip():
        raise InputError(
            f"--link {text!r}: found no bandwidth, expected such as between_hosts=25 Gbit/s or T4:0-L4:0=2 GB/s,50 us"
        )

    def link(before: Link) -> Link:
        seconds = parse_time(latency) if latency.strip() else before.latency_s
        return Link(parse_bandwidth(bandwidth), seconds, "given")

    key = where.strip().casefold()
    if key == "within_host":
        return replace(cluster, within_host=link(cluster.within_host))
    if key == "between_hosts":
        return replace(cluster, between_hosts=link(cluster.between_hosts))
    source, target = _ends(cluster, where)
    others = tuple(pair for pair in cluster.pairs if {cluster.device(e) for e in (pair.source, pair.target)} != {source, target})
    pair = PairLink(source.name, target.name, link(cluster.link(source.name, target.name)))
    return replace(cluster, pairs=(*others, pair))


def _ends(cluster: Cluster, text: str) -> tuple[Device, Device]:
    """The two devices of A-B; names hold dashes too, so every split is tried."""
    for dash in re.finditer("-", text):
        names = text[: dash.start()].strip().casefold(), text[dash.end() :].strip().casefold()
        found = [device for name in names for device in cluster.devices if device.name.casefold() == name]
        if len(found) == 2 and found[0] != found[1]:
            return found[0], found[1]
    known = ", ".join(device.name for device in cluster.devices)
    raise ClusterError(f"--link {text!r}: expected within_host, between_hosts or two devices such as A-B; devices are {known}")


def with_prices(clusters: tuple[Cluster, ...], texts: tuple[str, ...]) -> tuple[Cluster, ...]:
    """The clusters with prices per hour: `T4=0.35` for a type, `T4:0=0.35` for one device, of at least one of them."""
    for text in texts:
        name, _, figure = text.partition("=")
        key = name.strip().casefold()
        if not figure.strip():
            raise InputError(f"--price {text!r}: found no price, expected TYPE=PRICE such as T4=0.35, per hour")
        if not any(key in _keys(device) for cluster in clusters for device in cluster.devices):
            known = ", ".join(dict.fromkeys(device.type.name for cluster in clusters for device in cluster.devices))
            raise InputError(
                f"--price {text!r}: {name.strip()} is neither a device nor a type of the clusters; known are {known}"
            )
        clusters = tuple(_with_price(cluster, key, parse_number(figure)) for cluster in clusters)
    return clusters


def _with_price(cluster: Cluster, key: str, price: float) -> Cluster:
    devices = (replace(device, price_per_hour=price) if key in _keys(device) else device for device in cluster.devices)
    return replace(cluster, devices=tuple(devices))


def _keys(device: Device) -> tuple[str, str]:
    return device.name.casefold(), device.type.name.casefold()
