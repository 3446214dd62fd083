"""StartUp: what loading a stage took, in seconds and bytes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llmpq.checkpoint.peak_memory import PeakMeter

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StartUp:
    """load_s: until the stage could run; peak_bytes: the most that its process held meanwhile, what it had before included."""

    load_s: float
    peak_bytes: int
    accelerator_bytes: int


def started(load: Callable[[], T]) -> tuple[T, StartUp]:
    """What `load` returns, and what it took."""
    meter, start = PeakMeter(), time.perf_counter()
    loaded = load()
    took, memory = time.perf_counter() - start, meter.read()
    return loaded, StartUp(took, memory.peak, memory.accelerator)
