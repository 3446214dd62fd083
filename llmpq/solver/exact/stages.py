"""Stages: every stage that an assignment below a cutoff may contain, as arcs of a graph over (device, boundary)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int32]
    Wide = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chains:
    """Options of the layers of a stage, last layer first, as linked lists."""

    parent: "Ints"
    option: "NDArray[np.uint8]"

    def options(self, chain: int) -> list[int]:
        """Options in the order of the layers."""
        found = []
        while chain >= 0:
            found.append(int(self.option[chain]))
            chain = int(self.parent[chain])
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Stages:
    """Items sorted by the state they start from: device * (layers + 1) + boundary; the end is devices * (layers + 1).

    figures [item, 5]: prefill and decode seconds with the outgoing link, slowest of each, sensitivity.
    """

    start: "Ints"
    stop: "Ints"
    figures: "Floats"
    chain: "Ints"

    def __len__(self) -> int:
        return len(self.start)

    def only(self, chosen: "NDArray[np.bool_]") -> "Stages":
        return Stages(self.start[chosen], self.stop[chosen], self.figures[chosen], self.chain[chosen])
