"""Link: how fast bytes travel from one device to another."""

from dataclasses import dataclass

from llmpq.errors import ClusterError
from llmpq.hardware.link_table import find_link_kind, transfer_s


@dataclass(frozen=True, slots=True)
class Link:
    """`provenance`: "assumed" (a documented default), "given" (by the user), "measured" or "table".

    kind: of the link table, whose seconds then hold for every size of a message; the bandwidth is that of long ones and the
    latency that of short ones, and where they were changed since, the seconds change by as much.
    """

    bandwidth_bytes_per_s: float
    latency_s: float
    provenance: str
    kind: str | None = None

    def __post_init__(self) -> None:
        if self.bandwidth_bytes_per_s <= 0 or self.latency_s < 0:
            raise ClusterError(
                f"link: bandwidth {self.bandwidth_bytes_per_s} B/s and latency {self.latency_s} s; "
                "expected a bandwidth above 0 and a latency of at least 0"
            )

    @staticmethod
    def of_kind(name: str) -> "Link":
        """The link of that kind. Raises ClusterError naming the kinds that are known."""
        kind = find_link_kind(name)
        return Link(kind.bandwidth_bytes_per_s, kind.latency_s, "table", kind.name)

    def transfer_s(self, nbytes: float) -> float:
        """Seconds for one message of `nbytes`: latency + bytes / bandwidth, or by the table of its kind."""
        linear = self.latency_s + nbytes / self.bandwidth_bytes_per_s
        if self.kind is None:
            return linear
        kind = find_link_kind(self.kind)
        return transfer_s(kind.points, nbytes) * linear / (kind.latency_s + nbytes / kind.bandwidth_bytes_per_s)


@dataclass(frozen=True, slots=True)
class PairLink:
    """The link from the device named `source` to the one named `target`."""

    source: str
    target: str
    link: Link


# Assumed: three quarters of the 15.75 GB/s of PCIe 3.0 x16, and one copy with its synchronization.
WITHIN_HOST = Link(12e9, 20e-6, "assumed")
# Assumed: 10-gigabit Ethernet, and one TCP message with its wake-up.
BETWEEN_HOSTS = Link(1.2e9, 80e-6, "assumed")
SAME_DEVICE = Link(float("inf"), 0.0, "same device")
