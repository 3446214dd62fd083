"""Peak memory: the most that this process held at once since a moment, as the system counts it."""

import resource
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak of the resident set to its present size


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes. at_start: resident when measuring began; peak: the most since, pages of mapped files included; accelerator: the
    most that torch held on a CUDA device."""

    at_start: int
    peak: int
    accelerator: int


class PeakMeter:
    """Measures from its creation on; where the system cannot forget an earlier peak, from the start of the process on."""

    def __init__(self) -> None:
        if CLEAR.exists():
            CLEAR.write_text(RESET_PEAK)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._at_start = _status("VmRSS")

    def read(self) -> PeakMemory:
        accelerator = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return PeakMemory(self._at_start, _status("VmHWM"), accelerator)


def _status(name: str) -> int:
    """Bytes of a line of the process's status; the peak that getrusage knows where there is no such file."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
