"""Certificate: an assignment, a bound, and the leaf boxes and multipliers that prove the bound."""

import hashlib
import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from llmpq.errors import InputError
from llmpq.serialize import from_json, to_json
from llmpq.solver.problem import Problem

CERTIFICATE_FORMAT = "llmpq-certificate-1"


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Dual values, each at least 0: prefill, decode [device], seconds per second of a stage; memory [device], seconds per byte;
    budget, seconds per nat per token; round_trip, 0 to 1, the share of a round trip that is charged by its sum."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    memory: tuple[float, ...]
    budget: float
    round_trip: float


@dataclass(frozen=True, slots=True)
class Leaf:
    """A box low <= slowest < high, seconds, of the slowest prefill and decode stage; None: no upper end.

    by: what bounds it: `layers`, shortest path over layers with memory priced; `stages`, shortest path over whole stages that
    fit; `paths`, every path of stages, for what a single multiplier of the budget or of the round trip does not close.
    """

    low: tuple[float, float]
    high: tuple[float | None, float | None]
    by: Literal["layers", "stages", "paths"]
    multipliers: Multipliers


@dataclass(frozen=True, slots=True)
class Start:
    """The proof for one first used device.

    listing: multipliers and upper ends by which the stages are listed that leaves by stages and paths are made of; None
    when there is no such leaf.
    """

    first: int
    listing: Leaf | None
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """No assignment of the problem has an objective below `bound`; the one given has `objective`, seconds.

    problem: sha256 of the problem's canonical JSON; device, option: indices, one per layer; gap: relative, claimed.
    Numbers are the shortest decimals that read back as the same floats.
    """

    problem: str
    objective: float
    bound: float
    gap: float
    device: tuple[int, ...]
    option: tuple[int, ...]
    starts: tuple[Start, ...]
    format: str = CERTIFICATE_FORMAT

    @property
    def leaves(self) -> int:
        return sum(len(start.leaves) for start in self.starts)

    @property
    def kind(self) -> str:
        """In words, with the number of leaves."""
        weak = all(leaf.by == "layers" and leaf.high == (None, None) for start in self.starts for leaf in start.leaves)
        return f"weak dual bound alone ({self.leaves} leaves)" if weak else f"{self.leaves} leaf boxes"

    def dumps(self) -> str:
        """JSON, a line."""
        return json.dumps(to_json(self), separators=(",", ":"), allow_nan=False) + "\n"


def problem_digest(problem: Problem) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(problem.to_json(), sort_keys=True).encode()).hexdigest()


def _finite(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def load_certificate(path: Path) -> Certificate:
    """The certificate in a file; InputError names the file when it is missing or no certificate."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except OSError as error:
        raise InputError(f"certificate {str(path)!r} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:
        raise InputError(
            f"certificate {str(path)!r} is not JSON: {error}; write it again with llmpq solve --certificate"
        ) from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != CERTIFICATE_FORMAT:
        raise InputError(f"certificate {str(path)!r}: format is {found!r}, expected {CERTIFICATE_FORMAT!r}; write it again")
    certificate: Certificate = from_json(Certificate, value, str(path))
    return certificate
