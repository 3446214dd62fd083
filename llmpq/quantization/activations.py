"""Activations: what the windows of a calibration text have become so far, in memory or, beyond a limit, in unnamed files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


@dataclass
class Activations:
    """`limit_bytes` of all values kept may stay in memory; beyond that they lie in files that the system may write out.

    The files, in `directory`, lose their names as soon as they are mapped: nothing is left of them however the process ends.
    """

    directory: Path
    limit_bytes: int
    spilled_bytes: int = 0
    _files: int = 0

    def keep(self, value: Any, windows: int) -> Any:
        """The value of one of `windows` windows, its tensors on the CPU; in files when all windows together pass the limit."""

        def place(tensor: Tensor) -> Tensor:
            return tensor.cpu() if windows * tensor.nbytes <= self.limit_bytes else self._mapped(tensor)

        return tree_map_only(Tensor, place, value)

    def _mapped(self, tensor: Tensor) -> Tensor:
        self._files += 1
        path = self.directory / f".activation-{self._files}"
        mapped = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        path.unlink()
        self.spilled_bytes += tensor.nbytes
        return mapped.copy_(tensor.flatten()).view(tensor.shape)
