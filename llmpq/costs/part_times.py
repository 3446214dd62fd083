"""Times of layers whose parts differ in precision, from those that were measured with one precision for the whole layer."""

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
