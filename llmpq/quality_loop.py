"""The quality loop: quantize, measure the real increase of the loss, and plan again while it breaks the target."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmpq.checkpoint.loss_increase import Original
from llmpq.checkpoint.quantization_report import BUILD_FILE
from llmpq.checkpoint.reader import Checkpoint, read_json
from llmpq.errors import CheckpointError, InputError
from llmpq.evaluation import Estimate
from llmpq.frontend.models import DEMO
from llmpq.frontend.texts import REPORT, TUNE, bundled_text_notice, read_tokens
from llmpq.options import Options
from llmpq.passmanager import Pass, run_passes
from llmpq.plan import Plan
from llmpq.program import Program, Target
from llmpq.quality_check import QualityCheck, format_check, meet_target, require_held
from llmpq.quantization.room import no_room_for
from llmpq.serialize import to_json

TOKENS = 16384  # of each text: the standard error of a 2 % increase is then some 5 % of it
FEWEST = 512
FEWEST_OF_USER = 257  # two blocks of neighbouring tokens: with one there is no standard error
FLOP = 2e14  # of one pass over a text, 2 per parameter and token: minutes on a CPU


@dataclass(frozen=True, slots=True)
class Texts:
    """What increases are measured on: the tuning text decides, the report text only tells."""

    tune: tuple[int, ...]
    tune_name: str
    report: tuple[int, ...]
    report_name: str


def carry_out(
    program: Program, write: Callable[[Program], Program], assignment: Sequence[Pass], model: Path, out: Path, options: Options
) -> Program:
    """Write the planned program to `out`, check its quality, and plan again by `assignment` while the target is broken.

    write: quantizes a planned program and returns it with its notices. Returns the program that was written last; what was
    measured is in build.json. Raises QualityError for an explicit target that is not met; the default one ends in a notice.
    """
    texts, skipped = _texts(program, model, options)
    asked = program.request.target.budget
    if texts is None or asked is None:
        written = write(program)
        _record(out, QualityCheck(asked or 0.0, skipped=skipped))
        return written
    current, original = program, Original.of(model, texts.tune)

    def measure(plan: Plan) -> Estimate:
        nonlocal current
        current = write(replace(program, plan=plan))
        return original.increase(out)

    def plan_again(budget: float) -> Plan:
        request = replace(program.request, target=Target(budget, explicit=True))
        planned: Plan = run_passes(replace(program, request=request, plan=None), assignment).require("plan")
        return planned

    check = meet_target(asked, program.require("plan"), measure, plan_again)
    reported = Original.of(model, texts.report).increase(out)
    check = replace(check, tuned_on=texts.tune_name, report=reported, reported_on=texts.report_name)
    _record(out, check)
    if program.request.target.explicit:
        require_held(check, str(out))
    return replace(current, notices=current.notices + _notices(program, options, check))


def read_check(out: Path) -> QualityCheck | None:
    """The quality check of an output directory; None where build.json has none."""
    from llmpq.serialize import from_json

    value = read_json(out / BUILD_FILE).get("quality")
    return None if value is None else from_json(QualityCheck, value, str(out / BUILD_FILE))


def _texts(program: Program, model: Path, options: Options) -> tuple[Texts | None, str]:
    """The texts, or why nothing can be measured."""
    if not options.quality_check:
        return None, "--no-quality-check"
    if program.request.target.budget is None:
        return None, "no quality target was given"
    if not program.graph.generates:
        return None, f"{program.graph.architecture} continues no text"
    reason = no_room_for(Checkpoint.open(model))
    if reason is not None:
        return None, reason
    most = min(TOKENS, int(FLOP / (2 * program.graph.parameters)))
    if most < FEWEST:
        return None, f"a model of {program.graph.parameters:,} parameters takes too long here"
    try:
        tune, report = read_tokens(model, options.tune or TUNE), read_tokens(model, options.report or REPORT)
    except CheckpointError as error:
        return None, str(error)
    for ids, name in (tune, report):
        if len(ids) < FEWEST_OF_USER:
            raise InputError(
                f"text {name} has {len(ids)} tokens; at least {FEWEST_OF_USER} are needed to measure an increase of the loss"
            )
    return Texts(tune[0][:most], tune[1], report[0][:most], report[1]), ""


def _notices(program: Program, options: Options, check: QualityCheck) -> tuple[str, ...]:
    bundled = None
    if options.tune is None and program.graph.model != DEMO:
        bundled = bundled_text_notice("the quality target was checked", program.graph.model, "--tune")
    missed = () if check.held else ("the default quality target is not met: " + "; ".join(format_check(check)[:-1]),)
    return ((bundled,) if bundled else ()) + missed


def _record(out: Path, check: QualityCheck) -> None:
    """Add the check to build.json, which no checksum covers."""
    path = out / BUILD_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**read_json(path), "quality": to_json(check)}, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
