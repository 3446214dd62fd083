"""Weights: multipliers as integers, rounded down, and the box that they bound."""

from dataclasses import dataclass
from fractions import Fraction

from llmpq.errors import CertificateError
from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.value import Leaf

ONE = 1 << 40  # the weight 1


@dataclass(frozen=True, slots=True)
class Weights:
    """Multipliers times ONE (memory times ONE times the unit of seconds): any that are not negative give a bound, rounded
    ones as well. Costs below are in units of 1 / (ONE * unit) seconds.

    share: of a round trip that is charged by its sum; sum_decode: weight of the sum of decode seconds; total_*: weights of the
    slowest stages, of which the devices carry prefill and decode.
    low, high: the box in units of seconds, low <= slowest < high.
    """

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    memory: tuple[int, ...]
    budget: int
    share: int
    sum_decode: int
    total_prefill: int
    total_decode: int
    low: tuple[int, int]
    high: tuple[int | None, int | None]

    @staticmethod
    def of(scaled: Scaled, leaf: Leaf, where: str) -> "Weights":
        at = leaf.multipliers
        for name, row in (("prefill", at.prefill), ("decode", at.decode), ("memory", at.memory)):
            if len(row) != scaled.devices or min(row) < 0:
                raise CertificateError(f"{where}: multipliers of {name} must be {scaled.devices} numbers of at least 0")
        if at.budget < 0 or (at.budget and scaled.budget is None):
            raise CertificateError(
                f"{where}: the multiplier of the budget is {at.budget}, expected 0, or more where there is a budget"
            )
        prefill, decode = tuple(map(_down, at.prefill)), tuple(map(_down, at.decode))
        if not 0 <= at.round_trip <= 1:
            raise CertificateError(f"{where}: the share of the round trip is {at.round_trip}, expected 0 to 1")
        share, total_prefill = _down(at.round_trip), ONE * scaled.slowest_prefill
        total_decode = ONE * scaled.slowest_decode + (ONE - share) * scaled.rounds * scaled.micro_batches
        for name, row, total in (("prefill", prefill, total_prefill), ("decode", decode, total_decode)):
            if sum(row) > total:
                raise CertificateError(f"{where}: multipliers of {name} add up to {sum(row) / ONE}, above {total / ONE}")
        low, high = tuple(map(scaled.up, leaf.low)), tuple(map(scaled.up, leaf.high))
        return Weights(
            prefill,
            decode,
            tuple(_down(value * scaled.unit) for value in map(Fraction, at.memory)),
            _down(at.budget),
            share if scaled.rounds else ONE,
            ONE * scaled.sum_decode + share * scaled.rounds,
            total_prefill,
            total_decode,
            (low[0] or 0, low[1] or 0),
            (high[0], high[1]),
        )


def _down(value: float | Fraction) -> int:
    return int(Fraction(value) * ONE // 1)


def below(value: int, high: int | None) -> bool:
    return high is None or value < high
