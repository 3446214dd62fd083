"""estimate-sensitivity: nats per token for each layer and option, by an indicator or the documented prior."""

from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.errors import InputError
from llmpq.program import Program
from llmpq.sensitivity import prior

INDICATORS = ("auto", "variance", "prior")


@dataclass(frozen=True, slots=True)
class EstimateSensitivity:
    """`indicator`: variance needs weights and calibration tokens; auto takes it where they are there, else the prior."""

    name: ClassVar[str] = "estimate-sensitivity"
    requires: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ("sensitivity",)

    indicator: str = "auto"

    def apply(self, program: Program) -> Program:
        if self.indicator not in INDICATORS:
            raise InputError(f"indicator {self.indicator!r} is unknown; known are {', '.join(INDICATORS)}")
        if program.sensitivity is not None:
            return program
        calibration = program.calibration
        if calibration is None and self.indicator == "variance":
            raise InputError("indicator 'variance' needs the model's weights; compile a model directory, or use the prior")
        if calibration is None or self.indicator == "prior":
            return replace(program, sensitivity=prior(program.graph, program.request.precisions))
        from llmpq.quantization.indicators import variance

        return replace(program, sensitivity=variance(program.graph, program.request.precisions, calibration))
