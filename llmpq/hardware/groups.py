"""Groups of devices: a cluster whose devices are tensor-parallel groups of identical ones of a host."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from llmpq.hardware.cluster import A_MEBIBYTE, Cluster, Device, PairLink


def grouped(cluster: Cluster, ranks: int, known: tuple[Device, ...] = ()) -> Cluster | None:
    """The cluster with its devices in groups of that many, what is left over left out; None where there is no such group.

    Of the devices of a host that are alike those with the fastest slowest link between them come first together. known: groups
    that are made already
    """
    taken = {name for group in known for name in group.members}
    free = tuple(tuple(device for device in alike if device.name not in taken) for alike in _alike(cluster))
    found = (group for alike in free for group in _groups(cluster, alike, ranks))
    devices = (*known, *(cluster.group(members) for members in found))
    if not devices:
        return None
    return replace(cluster, devices=devices, pairs=tuple(_pairs(cluster, devices)), notices=())


def _alike(cluster: Cluster) -> tuple[tuple[Device, ...], ...]:
    """The devices of each host that are alike."""
    alike: dict[Device, list[Device]] = {}
    for device in cluster.devices:
        alike.setdefault(replace(device, name="", price_per_hour=None), []).append(device)
    return tuple(map(tuple, alike.values()))


def _groups(cluster: Cluster, devices: tuple[Device, ...], ranks: int) -> Iterator[tuple[Device, ...]]:
    """Disjoint groups, in the order of the cluster where all links are the same."""
    left = list(devices)
    while len(left) >= ranks:
        one_link = len({cluster.link(a.name, b.name) for a, b in combinations(left, 2)}) == 1
        best = tuple(left[:ranks]) if one_link else min(combinations(left, ranks), key=lambda group: _slowest_s(cluster, group))
        yield best
        left = [device for device in left if device not in best]


def _slowest_s(cluster: Cluster, group: tuple[Device, ...]) -> float:
    within = cluster.group(group).within
    return 0.0 if within is None else within.transfer_s(A_MEBIBYTE)


def _pairs(cluster: Cluster, devices: tuple[Device, ...]) -> Iterator[PairLink]:
    """Where the slowest link between two groups is not that of their hosts."""
    for a in devices:
        for b in devices:
            link = cluster.link(a.name, b.name)
            by_host = cluster.within_host if a.host == b.host else cluster.between_hosts
            if a != b and link != by_host:
                yield PairLink(a.name, b.name, link)
