"""Passes: the protocol, the table of known ones, and the manager that runs and verifies a pipeline of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, cast, get_type_hints, runtime_checkable

from llmpq.errors import InputError, PassError, VerifyError
from llmpq.pipeline_text import PassSpec, format_specs, parse_specs
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


@runtime_checkable
class Verifier(Protocol):
    """A pass that checks its own work: `verify` tells what does not hold of the program that `apply` returned."""

    def verify(self, program: Program) -> Iterable[str]: ...


PASSES: dict[str, str] = {
    "derive-costs": "llmpq.passes.derive_costs:DeriveCosts",
    "estimate-sensitivity": "llmpq.passes.estimate_sensitivity:EstimateSensitivity",
    "select-options": "llmpq.passes.select_options:SelectOptions",
    "assign-joint": "llmpq.passes.assign_joint:AssignJoint",
    "assign-robust": "llmpq.passes.assign_robust:AssignRobust",
    "assign-given": "llmpq.passes.assign_given:AssignGiven",
    "assign-even": "llmpq.passes.assign_even:AssignEven",
    "assign-hand": "llmpq.passes.assign_hand:AssignHand",
    "assign-fastest": "llmpq.passes.assign_fastest:AssignFastest",
    "assign-uniform": "llmpq.passes.assign_uniform:AssignUniform",
    "assign-pipeedge": "llmpq.passes.assign_pipeedge:AssignPipeedge",
    "assign-adabits": "llmpq.passes.assign_adabits:AssignAdabits",
    "assign-transfer": "llmpq.passes.assign_transfer:AssignTransfer",
    "annotate-graph": "llmpq.passes.annotate_graph:AnnotateGraph",
    "trim-logits": "llmpq.passes.trim_logits:TrimLogits",
    "rematerialize": "llmpq.passes.rematerialize:Rematerialize",
    "eliminate-dead-code": "llmpq.passes.eliminate_dead_code:EliminateDeadCode",
    "split-by-stage": "llmpq.passes.split_by_stage:SplitByStage",
    "insert-transfers": "llmpq.passes.insert_transfers:InsertTransfers",
    "replace-linears": "llmpq.passes.replace_linears:ReplaceLinears",
}
PLANNING = "derive-costs,estimate-sensitivity,assign-joint"
LOWERING = "annotate-graph,trim-logits,rematerialize,eliminate-dead-code,split-by-stage,insert-transfers,replace-linears"
ENTRY_POINTS = "llmpq.passes"  # the group in which installed packages offer passes of their own

Observer = Callable[[Pass, Program], None]


def load_pass(name: str) -> type[Pass]:
    """The class of a known pass, of "module:Class", or of an entry point in the group `llmpq.passes`.

    Raises InputError when there is none, when its module cannot be imported, or when it is not a pass.
    """
    target = PASSES.get(name) or (name if ":" in name else _installed(name))
    module, _, attribute = target.partition(":")
    try:
        loaded: Any = import_module(module)
    except ImportError as error:
        raise InputError(
            f"pass {name!r}: module {module!r} cannot be imported ({error}); install it, or add its folder to PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        loaded = getattr(loaded, part, None)
    lacking = [each for each in ("name", "requires", "provides", "apply") if not hasattr(loaded, each)]
    if not isinstance(loaded, type) or not is_dataclass(loaded) or lacking:
        reason = f"lacks {', '.join(lacking)}" if loaded is not None else f"is not in {module}"
        raise InputError(f"pass {name!r}: {attribute} {reason}; expected a frozen dataclass as in docs/passes.md")
    return cast(type[Pass], loaded)


def _installed(name: str) -> str:
    found = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = (*PASSES, *found)
        hint = f"module:Class names one of your own{did_you_mean(name, known)}"
        raise InputError(f"pass {name!r} is unknown; known are {', '.join(known)}; {hint}")
    return found[name]


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Passes from "derive-costs,assign-joint{gap=1e-4},my_module:MyPass"; `format_pipeline` is the inverse."""
    if not text.strip():
        raise InputError("the pipeline is empty; name at least one pass")
    return tuple(_build(spec) for spec in parse_specs(text))


def _build(spec: PassSpec) -> Pass:
    cls = load_pass(spec.name)
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # passes are dataclasses
    for key, value in spec.options:
        if key not in known:
            raise InputError(f"pass {spec.name}: option '{key}={value}' is unknown; known are {', '.join(known) or 'none'}")
    try:
        return cls(**{key: _parse_value(spec.name, key, value, hints[key]) for key, value in spec.options})
    except TypeError as error:
        raise InputError(f"pass {spec.name}: {error}; give its options in braces") from error


def _parse_value(pass_name: str, key: str, raw: str, annotation: Any) -> Any:
    parsers: dict[Any, Callable[[str], Any]] = {
        bool: {"true": True, "false": False}.__getitem__,
        int: int,
        float: float,
        str: str,
    }
    try:
        return parsers[annotation](raw)
    except (ValueError, KeyError):
        expected = getattr(annotation, "__name__", str(annotation))
        raise InputError(f"pass {pass_name}: option {key} is {raw!r}; expected {expected}") from None


def format_pipeline(passes: Sequence[Pass]) -> str:
    """The pipeline as text; options at their default are left out."""
    return format_specs([pass_spec(item) for item in passes])


def pass_spec(item: Pass) -> PassSpec:
    """What names the pass in a pipeline: its own name when llmpq has it, else module:Class."""
    cls = type(item)
    home = f"{cls.__module__}:{cls.__qualname__}"
    changed = [
        (field.name, getattr(item, field.name))
        for field in fields(item)  # type: ignore[arg-type]  # passes are dataclasses
        if getattr(item, field.name) != field.default
    ]
    options = tuple((key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in changed)
    return PassSpec(item.name if PASSES.get(item.name) == home else home, options)


def run_passes(
    program: Program, passes: Sequence[Pass], observe: Observer | None = None, before: Observer | None = None
) -> Program:
    """Apply the passes in order, verifying what each one made; `before` sees the program that a pass gets, `observe` its result.

    Raises PassError when a pass misses what it requires or does not provide what it promised, VerifyError when what it made
    contradicts itself or its neighbours.
    """
    done: list[str] = []
    for item in passes:
        missing = [name for name in item.requires if not program.has(name)]
        if missing:
            raise PassError(
                f"pass {item.name} requires {', '.join(missing)}, which is not there yet (ran: {', '.join(done) or 'none'})"
            )
        if before is not None:
            before(item, program)
        program = item.apply(program)
        absent = [name for name in item.provides if not program.has(name)]
        if absent:
            raise PassError(
                f"pass {item.name} promised {', '.join(absent)} and did not provide it (ran before: {', '.join(done) or 'none'})"
            )
        done.append(item.name)
        _verify(item, program)
        if observe is not None:
            observe(item, program)
    return program


def _verify(item: Pass, program: Program) -> None:
    verify_program(program, after=item.name)
    problems = tuple(item.verify(program)) if isinstance(item, Verifier) else ()
    if problems:
        raise VerifyError(f"after pass {item.name}: {'; '.join(problems)}")
