"""estimate-sensitivity: nats per token for each layer and option, by an indicator or the documented prior."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.errors import InputError
from llmpq.program import Calibration, Program
from llmpq.sensitivity import prior, with_prior_cache
from llmpq.suggest import did_you_mean

INDICATORS = ("auto", "fisher", "variance", "hessian", "measured", "random", "prior")
DEFAULT = "fisher"


@dataclass(frozen=True, slots=True)
class EstimateSensitivity:
    """`indicator`: prior needs no weights; auto is fisher where weights and calibration tokens are there and the model fits in
    memory, else the prior."""

    name: ClassVar[str] = "estimate-sensitivity"
    requires: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ("sensitivity",)

    indicator: str = "auto"

    def apply(self, program: Program) -> Program:
        if self.indicator not in INDICATORS:
            hint = did_you_mean(self.indicator, INDICATORS)
            raise InputError(f"indicator {self.indicator!r} is unknown; known are {', '.join(INDICATORS)}{hint}")
        if program.sensitivity is not None:
            return replace(program, sensitivity=with_prior_cache(program.sensitivity, program.graph))
        calibration, chosen = program.calibration, self.indicator
        if calibration is None and chosen not in ("auto", "prior"):
            raise InputError(f"indicator {chosen!r} needs the model's weights; compile a model directory, or use the prior")
        if calibration is None or chosen == "prior":
            return replace(program, sensitivity=prior(program.graph, program.request.precisions))
        reason = _no_room(calibration)
        if reason is not None and chosen == "auto":
            told = f"sensitivity is the documented prior, not measured on this model: {reason}"
            table = prior(program.graph, program.request.precisions)
            return replace(program, sensitivity=table, notices=program.notices + (told,))
        if reason is not None:
            raise InputError(f"indicator {chosen!r} cannot look at the model: {reason}; use the prior, or a machine with more")
        from llmpq.quantization.indicators import estimate_sensitivity

        name = DEFAULT if chosen == "auto" else chosen
        return replace(program, sensitivity=estimate_sensitivity(name, program.graph, program.request.precisions, calibration))


def _no_room(calibration: Calibration) -> str | None:
    from llmpq.checkpoint.reader import Checkpoint
    from llmpq.quantization.room import no_room_for

    return no_room_for(Checkpoint.open(calibration.checkpoint))
