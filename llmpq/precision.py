"""Precision: how the weights and activations of a linear layer are stored."""

from dataclasses import dataclass
from typing import Literal

from llmpq.errors import InputError
from llmpq.suggest import did_you_mean

Kind = Literal["float", "int", "fp8"]
Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
CachePrecision = Literal["16", "int8", "fp8"]
CACHE_PRECISIONS: tuple[CachePrecision, ...] = ("16", "int8", "fp8")

GROUP_SIZE = 128  # what every engine's weight-only kernels know (vLLM Marlin: 32, 64, 128)
SMALLEST_GROUP = 32
SCALE_BITS = 16  # scales are stored in the plan's compute dtype


@dataclass(frozen=True, slots=True)
class Precision:
    """name, weight bits, activation bits (16: the compute dtype), and how scales are laid out.

    `group_size` None: one scale per output row; else at most that many input columns share a scale.
    """

    name: str
    num_bits: int
    activation_bits: int
    kind: Kind
    group_size: int | None
    symmetric: bool = True

    @property
    def is_quantized(self) -> bool:
        return self.kind != "float"

    @property
    def parts(self) -> "tuple[Precision, ...]":
        """The precisions that it is made of: itself."""
        return (self,)

    def of(self, part: Part) -> "Precision":
        """The precision of a part of a layer that is kept at this one."""
        return self

    def group_size_for(self, in_features: int) -> int:
        """Columns per scale: 128, 64 or 32 if one divides `in_features`, else its largest divisor in [32, 128], else the row."""
        if self.group_size is None:
            return in_features
        sizes = (self.group_size, 64, SMALLEST_GROUP, *range(self.group_size, SMALLEST_GROUP - 1, -1))
        return next((size for size in sizes if in_features % size == 0), in_features)

    def weight_bytes(self, out_features: int, in_features: int) -> int:
        """Bytes on disk and in memory of one weight with its scales (`weight_shape` and bias not counted)."""
        if not self.is_quantized:
            return out_features * in_features * self.num_bits // 8
        scales = out_features * (in_features // self.group_size_for(in_features)) * SCALE_BITS // 8
        if self.activation_bits < 16:
            return out_features * in_features * self.num_bits // 8 + scales
        words = -(-in_features * self.num_bits // 32)
        return out_features * words * 4 + scales


PRECISIONS: dict[str, Precision] = {
    "16": Precision("16", 16, 16, "float", None),
    "w8a8": Precision("w8a8", 8, 8, "int", None),
    "w8a16": Precision("w8a16", 8, 16, "int", GROUP_SIZE),
    "w4a16": Precision("w4a16", 4, 16, "int", GROUP_SIZE),
    "w3a16": Precision("w3a16", 3, 16, "int", GROUP_SIZE),
    "fp8": Precision("fp8", 8, 8, "fp8", None),
}
QUANTIZABLE = tuple(PRECISIONS)  # what this version's quantizer and runtime carry out


def parse_precision(name: str) -> Precision:
    """The precision of that name; 16, bf16, fp16 mean the plan's compute dtype."""
    key = {"bf16": "16", "fp16": "16", "w16a16": "16"}.get(name.strip().lower(), name.strip().lower())
    if key not in PRECISIONS:
        raise InputError(f"precision {name!r} is unknown; known are {', '.join(PRECISIONS)}{did_you_mean(key, PRECISIONS)}")
    return PRECISIONS[key]


def parse_precisions(names: str | tuple[str, ...]) -> tuple[Precision, ...]:
    """Distinct precisions from "16,w8a8" or a tuple of names, in the order given."""
    parts = tuple(names.split(",")) if isinstance(names, str) else names
    chosen = tuple(dict.fromkeys(parse_precision(part) for part in parts))
    if not chosen:
        raise InputError("no precision was given; give at least one, for instance 16,w8a8,w4a16")
    return chosen


def parse_cache_precision(name: str) -> CachePrecision:
    """The precision of a KV cache of that name. Raises InputError."""
    for known in CACHE_PRECISIONS:
        if name == known:
            return known
    hint = did_you_mean(name, CACHE_PRECISIONS)
    raise InputError(f"KV-cache precision {name!r} is unknown; known are {', '.join(CACHE_PRECISIONS)} and auto{hint}")
