"""Link: how fast bytes travel from one device to another."""

from dataclasses import dataclass

from llmpq.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Link:
    """`provenance`: "assumed" (a documented default), "given" (by the user) or "measured"."""

    bandwidth_bytes_per_s: float
    latency_s: float
    provenance: str

    def __post_init__(self) -> None:
        if self.bandwidth_bytes_per_s <= 0 or self.latency_s < 0:
            raise ClusterError(
                f"link: bandwidth {self.bandwidth_bytes_per_s} B/s and latency {self.latency_s} s; "
                "expected a bandwidth above 0 and a latency of at least 0"
            )

    def transfer_s(self, nbytes: float) -> float:
        """Seconds for one message of `nbytes`: latency + bytes / bandwidth."""
        return self.latency_s + nbytes / self.bandwidth_bytes_per_s


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
