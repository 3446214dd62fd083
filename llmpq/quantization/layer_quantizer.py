"""LayerQuantizer: what the writer of a stage asks for layer by layer, and the one that rounds each weight on its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llmpq.precision import Precision
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.rounding import QuantizedWeight, quantize


@dataclass(frozen=True, slots=True)
class LayerReport:
    """error: E|W x - W' x|^2 / E|W x|^2 over the layer's linears; rounded: linears that saw too few tokens for GPTQ, rounded
    to nearest; smoothed: norms whose weights took over scales of the linears that read them."""

    layer: int
    error: float
    rounded: tuple[str, ...] = ()
    smoothed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What was decided for a layer as a whole: full module name -> weight, and full name -> tensor of what else is changed."""

    weights: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    changed: Mapping[str, Tensor] = field(default_factory=dict)
    report: LayerReport | None = None


class LayerQuantizer(Protocol):
    """Asked for every layer in order: `quantize`, unless its result is stored already, then `go_on` with what is stored."""

    @property
    def spilled_bytes(self) -> int:
        """Activations that were written to files, in all."""
        ...

    def quantize(self, layer: int) -> LayerResult: ...

    def go_on(self, layer: int, stored: Mapping[str, Tensor]) -> None: ...

    def round(self, weight: Tensor, precision: Precision, dtype: torch.dtype) -> QuantizedWeight:
        """A weight that `quantize` left out."""
        ...


@dataclass(frozen=True, slots=True)
class RoundedLayers:
    """Every weight on its own, so that one tensor is in memory at a time."""

    clip: bool
    spilled_bytes: int = 0

    def quantize(self, layer: int) -> LayerResult:
        return LayerResult()

    def go_on(self, layer: int, stored: Mapping[str, Tensor]) -> None:
        """Nothing depends on earlier layers."""

    def round(self, weight: Tensor, precision: Precision, dtype: torch.dtype) -> QuantizedWeight:
        return (quantize_clipped if self.clip else quantize)(weight, precision, dtype)
