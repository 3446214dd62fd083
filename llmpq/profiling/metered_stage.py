"""MeteredStage: a stage that counts the tensors which live while it runs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmpq.graph import Attention
from llmpq.profiling.live_tensors import LiveTensors
from llmpq.quantization.quantized_linear import forget_scratch
from llmpq.runtime.batching import Step
from llmpq.runtime.stage import Stage


class MeteredStage(Stage):
    """Runs as a Stage does; several times slower while it counts, which it does until it is told otherwise."""

    counts = True

    def __init__(
        self, module: nn.Module, layers: Mapping[int, Attention], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(module, layers, dtype, device)
        self._meter = LiveTensors(self.module.state_dict(keep_vars=True).values())
        self._reserved = 0

    @property
    def live_bytes(self) -> int:
        """The most that tensors held at once so far, beside weights and cache."""
        return self._meter.peak_bytes - self._meter.held_bytes - self._reserved

    def reserve(self, slots: int, slot_len: int, planned: int = 0) -> None:
        with self._meter:
            super().reserve(slots, slot_len, planned)
        self._reserved = self._meter.alive_bytes() - self._meter.held_bytes

    def run(self, step: Step, x: Tensor) -> Tensor:
        if not self.counts:
            return super().run(step, x)
        forget_scratch()
        with self._meter:
            self._meter.note(x)
            return super().run(step, x)
