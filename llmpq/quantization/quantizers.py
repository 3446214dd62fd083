"""Quantizers: how weights become codes, and what that depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

LIMIT_BYTES = 1 << 31  # of activations in memory; a limit of ours, not of any algorithm
WINDOW = 512  # tokens
WINDOWS = 32


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounding to nearest; `clip`: with the scales of least squared error."""

    name: ClassVar[str] = "rtn"

    clip: bool = True

    def describe(self) -> Mapping[str, Any]:
        return {"quantizer": self.name, "clip": self.clip}


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ on a text: `count` windows of `window` tokens, spread over it (fewer where it is shorter).

    graph_module: the traced model without weights, its layers as leaves. limit_bytes: of activations in memory. smooth: w8a8
    linears may hand scales to the norm before them.
    """

    name: ClassVar[str] = "gptq"

    graph_module: fx.GraphModule
    token_ids: tuple[int, ...]
    text_name: str
    smooth: bool = True
    window: int = WINDOW
    count: int = WINDOWS
    limit_bytes: int = LIMIT_BYTES
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def windows(self, max_positions: int) -> Tensor:
        """[windows, tokens] token ids; one shorter window when the text is shorter."""
        tokens, length = torch.tensor(self.token_ids), min(self.window, max_positions)
        count = len(tokens) // length
        if count == 0:
            return tokens[None]
        chosen = torch.linspace(0, count - 1, min(self.count, count)).round().long()
        return tokens[: count * length].view(count, length)[chosen]

    def describe(self) -> Mapping[str, Any]:
        """What decides about the result, beside model and plan."""
        digest = hashlib.sha256(json.dumps(self.token_ids).encode()).hexdigest()
        text = {"text": self.text_name, "text_tokens": len(self.token_ids), "text_sha256": digest}
        return {
            "quantizer": self.name,
            **text,
            "window": self.window,
            "windows": self.count,
            "smooth": self.smooth,
            "device": str(self.device),
        }


Quantizer = Rounding | Gptq
