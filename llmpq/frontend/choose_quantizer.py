"""The quantizer of a compilation: the one asked for, or GPTQ wherever there is a text to calibrate it with."""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.errors import CheckpointError, InputError
from llmpq.frontend.cached_graphs import traced_module_of
from llmpq.frontend.models import DEMO, ModelSource, calibration_text, load_tokenizer, token_ids
from llmpq.precision import PRECISIONS
from llmpq.program import Calibration, Program

if TYPE_CHECKING:
    from llmpq.quantization.quantizers import Quantizer

FEWEST_TOKENS = 256


def choose_quantizer(
    source: ModelSource, directory: Path, program: Program, name: str, text: str | PathLike[str] | None
) -> "tuple[Quantizer, Program]":
    """The quantizer, and the program with notices about it.

    name: gptq, rtn, or auto: gptq unless the plan quantizes nothing or the model has no tokenizer. text: what the user
    gave; None: the bundled text. Raises InputError when gptq is asked for and the text is too short.
    """
    from llmpq.quantization.quantizers import Gptq, Rounding

    plan = program.require("plan")
    if name == "rtn" or not any(PRECISIONS[option].is_quantized for option in plan.options):
        return Rounding(), program
    try:
        calibration = program.calibration or _calibration(directory, text)
    except CheckpointError as error:
        if name == "gptq":
            raise
        return Rounding(), _with_notice(program, f"weights are rounded to nearest, not calibrated: {error}")
    if len(calibration.token_ids) < FEWEST_TOKENS:
        short = f"calibration text {calibration.text_name} has {len(calibration.token_ids)} tokens"
        if name == "gptq":
            raise InputError(f"{short}; GPTQ needs at least {FEWEST_TOKENS}, some ten thousand are better")
        return Rounding(), _with_notice(program, f"{short}; weights are rounded to nearest")
    if text is None and source.name != DEMO:
        program = _with_notice(
            program, "GPTQ is calibrated on the bundled text, Python source; give text like the model's own with --calibration"
        )
    return Gptq(traced_module_of(source), calibration.token_ids, calibration.text_name), program


def _calibration(directory: Path, text: str | PathLike[str] | None) -> Calibration:
    content, name = calibration_text(text)
    return Calibration(directory, tuple(token_ids(load_tokenizer(directory), content)), name)


def _with_notice(program: Program, notice: str) -> Program:
    return replace(program, notices=(*program.notices, notice))
