"""Collective table: seconds of all-reduces and all-gathers within a group of devices, measured or by the formula of a ring."""

from functools import cache

from llmpq.bundled import bundled_yaml
from llmpq.hardware.cluster import Device
from llmpq.hardware.link import Link
from llmpq.hardware.link_table import Points, find_link_kind, transfer_s
from llmpq.op_graph import Collective

ROUNDS: dict[Collective, int] = {"all-reduce": 2, "all-gather": 1}  # that a ring takes
# Of GPUs without a table whose link is only assumed: fitted to layers split among T4 and L4 of cloud hosts, whose cards reach
# each other through the host's memory (benchmarks/tensor_parallel.py).
CLOUD_HOST = Link(4.5e9, 36e-6, "table")


def collective_s(device: Device, operation: Collective, nbytes: float) -> float:
    """Seconds of a collective over a group, `nbytes` the whole message; 0 on a single device.

    From the table of the link's kind or of the devices where there is one; else by the ring, 2 (ranks - 1) messages of
    nbytes / ranks for an all-reduce and half as many for an all-gather, over the link, or over that of a cloud host where the
    link of GPUs is only assumed.
    """
    link = device.within
    if link is None:
        return 0.0
    points = _tables().get((_kind_of(device, link), operation, device.ranks))
    if points is not None:
        return _stretch(link, nbytes) * transfer_s(points, nbytes)
    unknown = link.provenance == "assumed" and device.type.kind != "cpu"
    over = CLOUD_HOST if unknown else link
    return ROUNDS[operation] * (device.ranks - 1) * over.transfer_s(nbytes / device.ranks)


def _kind_of(device: Device, link: Link) -> str:
    """The table to look into: of the link, or of the devices where the link is only assumed; "" for none."""
    if link.kind is not None:
        return link.kind
    return _kinds_of_devices().get(device.type.name, "") if link.provenance == "assumed" else ""


def _stretch(link: Link, nbytes: float) -> float:
    """By how much the link is slower than its kind, where it was changed since."""
    if link.kind is None:
        return 1.0
    return link.transfer_s(nbytes) / transfer_s(find_link_kind(link.kind).points, nbytes)


@cache
def _tables() -> dict[tuple[str, Collective, int], Points]:
    """(kind of link, operation, ranks) -> points."""
    found: dict[tuple[str, Collective, int], Points] = {}
    for name, figures in bundled_yaml("links/collectives.yaml")["kinds"].items():
        for operation, by_ranks in figures["us"].items():
            for ranks, us in by_ranks.items():
                found[name, operation, ranks] = tuple(zip(figures["bytes"], (t * 1e-6 for t in us), strict=True))
    return found


@cache
def _kinds_of_devices() -> dict[str, str]:
    kinds = bundled_yaml("links/collectives.yaml")["kinds"]
    return {device: name for name, figures in kinds.items() for device in figures["devices"]}
