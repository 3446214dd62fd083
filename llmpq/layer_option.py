"""LayerOption: what is chosen for a layer: one precision, or one for each of its parts."""

from dataclasses import dataclass
from itertools import permutations

from llmpq.errors import InputError
from llmpq.precision import Part, Precision, parse_precision, parse_precisions

GRANULARITIES = ("layer", "part")
SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class PartPrecisions:
    """Another precision for the attention of a layer than for its mlp."""

    attention: Precision
    mlp: Precision

    @property
    def name(self) -> str:
        """For instance w4a16/w8a16: attention first."""
        return f"{self.attention.name}{SEPARATOR}{self.mlp.name}"

    @property
    def parts(self) -> tuple[Precision, ...]:
        return self.attention, self.mlp

    @property
    def is_quantized(self) -> bool:
        return self.attention.is_quantized or self.mlp.is_quantized

    def of(self, part: Part) -> Precision:
        return self.attention if part == "attention" else self.mlp


LayerOption = Precision | PartPrecisions


def parse_option(name: str) -> LayerOption:
    """The precision of that name, or of "w4a16/w8a16" the precisions of attention and mlp. Raises InputError."""
    if SEPARATOR not in name:
        return parse_precision(name)
    attention, _, mlp = name.partition(SEPARATOR)
    return _mixed(parse_precision(attention), parse_precision(mlp))


def parse_options(names: str | tuple[str, ...], granularity: str = "layer") -> tuple[LayerOption, ...]:
    """Distinct options from "16,w4a16/w8a16" or a tuple of names, in the order given.

    granularity part: then also every mixture of two of the precisions named. Raises InputError.
    """
    if granularity not in GRANULARITIES:
        raise InputError(f"granularity {granularity!r} is unknown; known are {', '.join(GRANULARITIES)}")
    given = tuple(names.split(",")) if isinstance(names, str) else names
    parse_precisions(tuple(part for name in given for part in name.split(SEPARATOR)))
    chosen = tuple(dict.fromkeys(parse_option(name) for name in given))
    plain = [option for option in chosen if isinstance(option, Precision)]
    mixed = (_mixed(*pair) for pair in permutations(plain, 2)) if granularity == "part" else ()
    return tuple(dict.fromkeys((*chosen, *mixed)))


def mean_bits(option: LayerOption, attention_share: float = 0.5) -> float:
    """Bits per weight, `attention_share` of the weights being the attention's."""
    shares = zip(option.parts, (attention_share, 1 - attention_share) if len(option.parts) > 1 else (1.0,))
    return sum(precision.num_bits * share for precision, share in shares)


def _mixed(attention: Precision, mlp: Precision) -> LayerOption:
    return attention if attention == mlp else PartPrecisions(attention, mlp)
