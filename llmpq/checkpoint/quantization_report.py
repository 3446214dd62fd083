"""QuantizationReport: what build.json says of quantizing: how, how long, how much memory, and what it did to each layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.checkpoint.peak_memory import PeakMemory
from llmpq.checkpoint.reader import read_json
from llmpq.quantization.layer_quantizer import LayerReport
from llmpq.serialize import from_json
from llmpq.units import format_bytes, format_seconds

BUILD_FILE = "build.json"
SECTION = "quantization"


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """resumed: layers that an earlier, killed process had finished; seconds, memory: of the process that ended the work."""

    quantizer: Mapping[str, Any]
    seconds: float
    memory: PeakMemory
    spilled_bytes: int
    resumed: int
    layers: tuple[LayerReport, ...]

    @property
    def smoothed(self) -> tuple[str, ...]:
        """Norms whose weights are not the source's."""
        return tuple(name for layer in self.layers for name in layer.smoothed)

    def __str__(self) -> str:
        """One line for people."""
        rounded = sum(len(layer.rounded) for layer in self.layers)
        rise = format_bytes(max(0, self.memory.peak - self.memory.at_start))
        parts = [
            f"{self.quantizer['quantizer']} in {format_seconds(self.seconds)}, peak memory {format_bytes(self.memory.peak)} "
            f"({rise} more than before)",
            f"{format_bytes(self.spilled_bytes)} of activations in files" if self.spilled_bytes else "",
            f"{self.resumed} layers taken over from an earlier run" if self.resumed else "",
            f"{len(self.smoothed)} parameters of norms smoothed" if self.smoothed else "",
            f"{rounded} linears saw too few tokens and were rounded to nearest" if rounded else "",
        ]
        return "; ".join(filter(None, parts))


def read_report(out: Path) -> QuantizationReport:
    """The report of an output directory; CheckpointError when it has no build.json."""
    value = read_json(out / BUILD_FILE)[SECTION]
    memory = from_json(PeakMemory, value["memory"], f"{BUILD_FILE}.{SECTION}.memory")
    layers = from_json(tuple[LayerReport, ...], value["layers"], f"{BUILD_FILE}.{SECTION}.layers")
    return QuantizationReport(value["quantizer"], value["seconds"], memory, value["spilled_bytes"], value["resumed"], layers)
