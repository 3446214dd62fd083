"""Band: how far measurements lie from predictions, from residuals of what was left out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COVERAGE = 0.90
_FEWEST = 20  # residuals below which a class of predictions borrows from all of them


@dataclass(frozen=True, slots=True)
class Band:
    """Factors on a predicted latency between which 90 % of the measurements lie."""

    low: float
    high: float

    def wider(self, other: "Band") -> "Band":
        return Band(min(self.low, other.low), max(self.high, other.high))


# Roofline against the four systems with tables, n and k >= 1024, less or more than 90 % of each (docs/costs.md).
ROOFLINE_16_BIT = Band(0.5, 1.4)
ROOFLINE_QUANTIZED = Band(0.7, 3.0)
# Assumed for attention: as wide as the two together.
ROOFLINE_ATTENTION = Band(0.5, 3.0)


def calibrate(errors: Array, everything: Array) -> Band:
    """The central 90 % of log(measured / predicted); few residuals are joined by those of everything."""
    used = errors.ravel() if errors.size >= _FEWEST else np.concatenate([errors.ravel(), everything.ravel()])
    tail = (1 - COVERAGE) / 2
    low, high = np.exp(np.quantile(used, [tail, 1 - tail]))
    return Band(min(float(low), 1.0), max(float(high), 1.0))
