"""Measuring: the sensitivity of a model by any indicator, and what indicators measure it on."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmpq.errors import InputError
from llmpq.layer_option import LayerOption
from llmpq.sensitivity import SensitivityTable, prior
from llmpq.suggest import did_you_mean

if TYPE_CHECKING:
    from llmpq.quantization.scoring import Measurements

Progress = Callable[[str, int, int], None]
Notice = Callable[[str], None]


def check_indicator(name: str) -> None:
    """Raises InputError for a name that no indicator has."""
    from llmpq.passes.estimate_sensitivity import INDICATORS

    known = tuple(each for each in INDICATORS if each != "auto")
    if name not in known:
        raise InputError(f"indicator {name!r} is unknown; known are {', '.join(known)}{did_you_mean(name, known)}")


def sensitivity_of(
    model: Any, indicator: str, options: tuple[LayerOption, ...], text: str | None, notice: Notice, progress: Progress
) -> SensitivityTable:
    """The table of a model (directory, hub id, bundled name) on a text; `notice` is told when that is the bundled one.

    Raises InputError for an unknown indicator, and for one that needs weights where there are none or no room for them.
    """
    from llmpq.frontend.cached_graphs import layer_graph_of
    from llmpq.frontend.models import resolve

    check_indicator(indicator)
    if indicator == "prior":
        return prior(layer_graph_of(resolve(model, weights=False)), options)
    from llmpq.quantization.indicators import table_of

    return table_of(indicator, measurements(model, text, notice), options, progress)


def measurements(model: Any, text: str | None, notice: Notice) -> "Measurements":
    """Of a model with weights that fits in this machine's memory; else InputError."""
    from llmpq.checkpoint.reader import Checkpoint
    from llmpq.frontend.cached_graphs import layer_graph_of
    from llmpq.frontend.models import resolve
    from llmpq.frontend.texts import CALIBRATE, bundled_text_notice, read_tokens
    from llmpq.program import Calibration
    from llmpq.quantization.room import no_room_for
    from llmpq.quantization.scoring import Measurements

    source = resolve(model, weights=True)
    if source.directory is None:
        raise InputError(f"model {model!r} is a configuration without weights; give a directory or hub id, or --indicator prior")
    reason = no_room_for(Checkpoint.open(source.directory))
    if reason is not None:
        raise InputError(f"model {model!r} cannot be measured: {reason}; use --indicator prior, or a machine with more")
    said = None if text is not None else bundled_text_notice("sensitivity is measured", source.name, "--text")
    if said is not None:
        notice(said)
    ids, name = read_tokens(source.directory, text or CALIBRATE)
    if len(ids) < 2:
        raise InputError(f"calibration text {name} has {len(ids)} tokens; at least 2 are needed, some thousands are better")
    return Measurements.of(layer_graph_of(source), Calibration(source.directory, ids, name))
