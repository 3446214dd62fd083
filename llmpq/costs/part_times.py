"""Times of layers whose parts differ in precision, or whose cache is not of 16 bits, from those that were measured otherwise."""

from collections.abc import Callable
from math import prod

from llmpq.layer_option import LayerOption
from llmpq.precision import Precision


def measured_s(
    option: LayerOption, measured: Callable[[Precision], float | None], modelled: Callable[[LayerOption], float]
) -> float | None:
    """Seconds of a layer at an option; None where one of its precisions was not measured.

    Of parts that differ: the modelled time, times the factor by which the model is off: the geometric mean at both precisions.
    """
    if isinstance(option, Precision):
        return measured(option)
    found = [measured(precision) for precision in option.parts]
    known = [seconds for seconds in found if seconds is not None]
    if len(known) < len(found):
        return None
    off = prod(seconds / modelled(precision) for seconds, precision in zip(known, option.parts))
    return modelled(option) * off ** (1 / len(known))


def with_cache(seconds: float, cache: float, option: LayerOption, modelled: Callable[[LayerOption], float]) -> float:
    """Seconds that were measured with a 16-bit KV cache, with one whose attention takes `cache` more by the model: by the factor
    between the two that the model has."""
    return seconds if cache == 0 else seconds * (1 + cache / modelled(option))
