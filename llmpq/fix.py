"""Fix: a change of a request, verified, that makes a plan possible where there is none."""

from dataclasses import dataclass
from typing import Literal

ChangeKind = Literal["rule", "budget", "precisions", "batch_size", "prompt_len", "gen_len", "cache", "memory", "device", "engine"]


@dataclass(frozen=True, slots=True)
class Fix:
    """One change that alone makes a plan possible, and what the plan that it makes possible would do.

    `change` in words, `how` to ask for it; tokens_per_s and sensitivity (nats per token) are predicted.
    """

    kind: ChangeKind
    change: str
    how: str
    tokens_per_s: float
    sensitivity: float
