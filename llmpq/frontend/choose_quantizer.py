"""The quantizer of a compilation: the one asked for, or GPTQ wherever there is a text to calibrate it with."""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.errors import CheckpointError, InputError
from llmpq.frontend.cached_graphs import traced_module_of
from llmpq.frontend.models import ModelSource
from llmpq.frontend.texts import CALIBRATE, bundled_text_notice, read_tokens
from llmpq.layer_option import parse_option
from llmpq.program import Program

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
    if name == "rtn" or not any(parse_option(option).is_quantized for option in plan.options):
        return Rounding(), program
    try:
        token_ids, title = read_tokens(directory, text or CALIBRATE)
    except CheckpointError as error:
        if name == "gptq":
            raise
        return Rounding(), _with_notice(program, f"weights are rounded to nearest, not calibrated: {error}")
    if len(token_ids) < FEWEST_TOKENS:
        short = f"calibration text {title} has {len(token_ids)} tokens"
        if name == "gptq":
            raise InputError(f"{short}; GPTQ needs at least {FEWEST_TOKENS}, some ten thousand are better")
        return Rounding(), _with_notice(program, f"{short}; weights are rounded to nearest")
    notice = bundled_text_notice("weights are calibrated", source.name, "--calibration") if text is None else None
    program = program if notice is None else _with_notice(program, notice)
    return Gptq(traced_module_of(source), token_ids, title), program


def _with_notice(program: Program, notice: str) -> Program:
    return program if notice in program.notices else replace(program, notices=(*program.notices, notice))
