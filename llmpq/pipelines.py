"""Pipelines: the passes that make a plan, and those that lower a model by it, as the options ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.errors import InputError
from llmpq.options import Options
from llmpq.passmanager import LOWERING, PASSES, Pass, parse_pipeline, pass_spec
from llmpq.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class Pipelines:
    """`planning` ends with the pass that makes the plan; `lowering` goes from the traced graph to the stages that run.

    `asked_for`: what planning alone runs: all that the user's own pipeline names, else `planning`.
    """

    planning: tuple[Pass, ...]
    lowering: tuple[Pass, ...]
    asked_for: tuple[Pass, ...]

    def until(self, name: str) -> tuple[Pass, ...]:
        """All passes up to the first one of that name. Raises InputError when there is none."""
        passes = (*self.planning, *self.lowering)
        names = [names_of(item) for item in passes]
        if not any(name in found for found in names):
            known = [item.name for item in passes]
            raise InputError(f"pass {name!r} is not in the pipeline; it has {', '.join(known)}{did_you_mean(name, known)}")
        return passes[: next(index for index, found in enumerate(names) if name in found) + 1]


def names_of(item: Pass) -> tuple[str, ...]:
    """What a pass may be called by: its name, and what stands for it in a pipeline."""
    return item.name, pass_spec(item).name


def pipelines(options: Options) -> Pipelines:
    """The default pipelines with --assign, --indicator and the extra passes in them, or the user's own.

    Raises InputError when no pass makes a plan.
    """
    if options.pipeline is None:
        estimation = f"estimate-sensitivity{{indicator={options.indicator}}}"
        selection = parse_pipeline("select-options") if options.granularity == "part" else ()
        planning = (*parse_pipeline("derive-costs," + estimation), *selection, *_assignment(options.assign))
        return Pipelines(planning, _with_extra(parse_pipeline(LOWERING), options.passes), planning)
    passes = parse_pipeline(options.pipeline)
    cut = max((index + 1 for index, item in enumerate(passes) if "plan" in item.provides), default=0)
    if not cut:
        raise InputError(
            f"--passes {options.pipeline!r} makes no plan; name an assignment such as assign-joint in it, "
            "or add single passes to the default pipeline by --extra-pass"
        )
    return Pipelines(passes[:cut], _with_extra(passes[cut:] or parse_pipeline(LOWERING), options.passes), passes)


def _assignment(text: str) -> tuple[Pass, ...]:
    """The passes of --assign; InputError when none of them makes a plan."""
    passes = parse_pipeline(text)
    if "plan" not in passes[-1].provides:
        raise InputError(f"--assign {text!r} makes no plan; choose one of {', '.join(p for p in PASSES if 'assign' in p)}")
    return passes


def _with_extra(lowering: Sequence[Pass], extra: Sequence[Pass | str]) -> tuple[Pass, ...]:
    """Extra passes that require stages come last, the others first: what they insert is then annotated like the rest."""
    items = [item for each in extra for item in (parse_pipeline(each) if isinstance(each, str) else (each,))]
    late = [item for item in items if "stages" in item.requires]
    return (*(item for item in items if item not in late), *lowering, *late)
