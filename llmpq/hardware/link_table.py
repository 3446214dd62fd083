"""Link table: measured seconds of a message by its bytes, for kinds of links that a cluster may name."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import exp, log

from llmpq.bundled import bundled_yaml
from llmpq.errors import ClusterError

Points = tuple[tuple[int, float], ...]  # (bytes, seconds), ascending


@dataclass(frozen=True, slots=True)
class LinkKind:
    """`what` was measured; `devices`: types that a host joins so; `band`: factors that hold nine of ten measurements."""

    name: str
    what: str
    devices: tuple[str, ...]
    points: Points
    band: tuple[float, float]

    @property
    def latency_s(self) -> float:
        """Of the shortest message."""
        return self.points[0][1]

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """At which the longest message travels, its latency apart."""
        nbytes, seconds = self.points[-1]
        return nbytes / (seconds - self.latency_s)


def link_kinds() -> dict[str, LinkKind]:
    """All by name."""
    return dict(_kinds())


def find_link_kind(name: str) -> LinkKind:
    """The kind of that name, in any case. Raises ClusterError that lists the names."""
    found = _kinds().get(name.strip().casefold())
    if found is None:
        raise ClusterError(f"found link kind {name.strip()!r}, which is not in the library; known are {', '.join(_kinds())}")
    return found


def implied_kind(hosts: Iterable[Iterable[str]]) -> LinkKind | None:
    """The kind that joins the devices of every host that has several, given as names of types; None when they have none."""
    types = {name for host in map(tuple, hosts) if len(host) > 1 for name in host}
    return next((kind for kind in _kinds().values() if types and types <= set(kind.devices)), None)


def transfer_s(points: Points, nbytes: float) -> float:
    """Seconds of a message: linear between measured sizes in the logarithms; beyond them as the shortest, or in proportion."""
    sizes = [size for size, _ in points]
    if nbytes <= sizes[0]:
        return points[0][1]
    if nbytes >= sizes[-1]:
        return points[-1][1] * nbytes / sizes[-1]
    right = bisect_left(sizes, nbytes)
    (low, quick), (high, slow) = points[right - 1], points[right]
    return quick * exp(log(slow / quick) * log(nbytes / low) / log(high / low))


@cache
def _kinds() -> dict[str, LinkKind]:
    found = {}
    for name, figures in bundled_yaml("links/links.yaml")["kinds"].items():
        points = tuple(zip(figures["bytes"], (us * 1e-6 for us in figures["us"]), strict=True))
        found[name] = LinkKind(name, figures["what"], tuple(figures["devices"]), points, tuple(figures["band"]))
    return found
