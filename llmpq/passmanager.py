"""Passes: the protocol, the table of known ones, and the manager that runs and verifies a pipeline of them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, ClassVar, Protocol, runtime_checkable

from llmpq.errors import InputError, PassError
from llmpq.program import Program
from llmpq.suggest import did_you_mean
from llmpq.verify import verify_program


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass whose fields are its options; `requires` and `provides` name fields of Program."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    provides: ClassVar[tuple[str, ...]]

    def apply(self, program: Program) -> Program: ...


PASSES: dict[str, str] = {
    "derive-costs": "llmpq.passes.derive_costs:DeriveCosts",
    "estimate-sensitivity": "llmpq.passes.estimate_sensitivity:EstimateSensitivity",
    "assign-joint": "llmpq.passes.assign_joint:AssignJoint",
    "assign-even": "llmpq.passes.assign_even:AssignEven",
    "assign-hand": "llmpq.passes.assign_hand:AssignHand",
    "assign-fastest": "llmpq.passes.assign_fastest:AssignFastest",
    "annotate-graph": "llmpq.passes.annotate_graph:AnnotateGraph",
    "trim-logits": "llmpq.passes.trim_logits:TrimLogits",
    "rematerialize": "llmpq.passes.rematerialize:Rematerialize",
    "split-by-stage": "llmpq.passes.split_by_stage:SplitByStage",
    "replace-linears": "llmpq.passes.replace_linears:ReplaceLinears",
}
PLANNING = "derive-costs,estimate-sensitivity,assign-joint"
LOWERING = "annotate-graph,trim-logits,rematerialize,split-by-stage,replace-linears"

Observer = Callable[[Pass, Program], None]

_ITEM = re.compile(r"\s*([a-z0-9-]+)\s*(?:\{([^}]*)\})?\s*(?:,|$)")


def load_pass(name: str) -> type[Pass]:
    if name not in PASSES:
        raise InputError(f"pass {name!r} is unknown; known are {', '.join(PASSES)}{did_you_mean(name, PASSES)}")
    module, _, attribute = PASSES[name].partition(":")
    loaded: type[Pass] = getattr(import_module(module), attribute)
    return loaded


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Passes from "derive-costs,assign-joint{gap=1e-4},split-by-stage"; `format_pipeline` is the inverse."""
    passes: list[Pass] = []
    position = 0
    while position < len(text):
        match = _ITEM.match(text, position)
        if match is None:
            raise InputError(f"pipeline {text!r}, column {position + 1}: expected a pass name such as {PLANNING!r}")
        passes.append(_build(match.group(1), match.group(2) or ""))
        position = match.end()
    if not passes:
        raise InputError("the pipeline is empty; name at least one pass")
    return tuple(passes)


def _build(name: str, options: str) -> Pass:
    cls = load_pass(name)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]  # passes are dataclasses
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        key, equals, raw = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in known:
            raise InputError(f"pass {name}: option {item!r} is unknown; known are {', '.join(known) or 'none'}")
        values[key] = _parse_value(name, key, raw.strip(), known[key].type)
    return cls(**values)


def _parse_value(pass_name: str, key: str, raw: str, annotation: Any) -> Any:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    try:
        if text.startswith("bool"):
            return {"true": True, "false": False}[raw.lower()]
        return int(raw) if text.startswith("int") else float(raw) if text.startswith("float") else raw
    except (ValueError, KeyError):
        raise InputError(f"pass {pass_name}: option {key} is {raw!r}; expected {text}") from None


def format_pipeline(passes: Sequence[Pass]) -> str:
    """The pipeline as text; options at their default are left out."""
    return ",".join(_format(item) for item in passes)


def _format(item: Pass) -> str:
    changed = [
        f"{field.name}={getattr(item, field.name)}"
        for field in fields(item)  # type: ignore[arg-type]  # passes are dataclasses
        if getattr(item, field.name) != field.default
    ]
    return f"{item.name}{{{','.join(changed)}}}" if changed else item.name


def run_passes(program: Program, passes: Sequence[Pass], observe: Observer | None = None) -> Program:
    """Apply the passes in order, verifying what each one made.

    Raises PassError when a pass misses what it requires or does not provide what it promised.
    """
    done: list[str] = []
    for item in passes:
        missing = [name for name in item.requires if not program.has(name)]
        if missing:
            raise PassError(
                f"pass {item.name} requires {', '.join(missing)}, which is not there yet (ran: {', '.join(done) or 'none'})"
            )
        program = item.apply(program)
        absent = [name for name in item.provides if not program.has(name)]
        if absent:
            raise PassError(
                f"pass {item.name} promised {', '.join(absent)} and did not provide it (ran before: {', '.join(done) or 'none'})"
            )
        done.append(item.name)
        verify_program(program, after=item.name)
        if observe is not None:
            observe(item, program)
    return program
