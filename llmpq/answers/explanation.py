"""Explanation: what bounds a plan, a device or a layer of it, and what each bound is worth."""

from dataclasses import dataclass

from llmpq.answers.layers import LayerAnswer, answer_layer
from llmpq.answers.prices import Price, shadow_prices
from llmpq.answers.stage_bounds import Bottleneck, StageBounds, bottlenecks, stage_bounds
from llmpq.answers.subject import Subject
from llmpq.errors import InputError
from llmpq.plan import Plan
from llmpq.program import Program

SEARCH_LIMIT_S = 5.0  # of each search, rarely needed: up to eight devices the median takes half a second


@dataclass(frozen=True, slots=True)
class IdleDevice:
    """A device that the plan leaves idle: what using it for a layer at least would cost, seconds of the objective."""

    device: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a plan is as it is.

    objective_s, tokens_per_s: of the plan; best_s: of the best plan found to a gap of 1e-4, which prices are relative to;
    bound_by: the kinds of change that would make it faster, the dearest first; prices: all that were asked about.
    """

    model: str
    objective_s: float
    tokens_per_s: float
    best_s: float
    bottlenecks: tuple[Bottleneck, ...]
    stages: tuple[StageBounds, ...]
    bound_by: tuple[str, ...]
    prices: tuple[Price, ...]
    idle: tuple[IdleDevice, ...] = ()
    layer: LayerAnswer | None = None
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        from llmpq.answers.explanation_text import format_explanation

        return format_explanation(self)


def explain(
    program: Program, *, layer: int | None = None, device: str | None = None, time_limit_s: float = SEARCH_LIMIT_S
) -> Explanation:
    """Why the plan of a program with costs and sensitivity is as it is: the whole, one layer, or one device.

    Prices and the next-best choice come from planning again, `time_limit_s` seconds each. Raises InputError for a layer or
    (as ClusterError) a device that is not there, and where both are asked about.
    """
    if layer is not None and device is not None:
        raise InputError("explain: both a layer and a device were given; ask about one of them")
    subject = Subject.of(program, time_limit_s)
    plan = subject.plan
    name = None if device is None else _place(subject, plan.cluster.device(device).name)
    base = subject.solved() or plan
    stages = stage_bounds(subject)
    answered = None if layer is None else answer_layer(subject, base, layer)
    prices = shadow_prices(subject, base, name) if layer is None else ()
    shown = name if answered is None else answered.device
    return Explanation(
        model=plan.model,
        objective_s=plan.optimality.objective,
        tokens_per_s=plan.tokens_per_s,
        best_s=base.optimality.objective,
        bottlenecks=bottlenecks(subject, stages),
        stages=tuple(stage for stage in stages if shown in (None, stage.device)),
        bound_by=_bound_by(prices),
        prices=prices,
        idle=_idle(subject, base, name) if layer is None else (),
        layer=answered,
        notices=program.notices,
    )


def _bound_by(prices: tuple[Price, ...]) -> tuple[str, ...]:
    """Kinds of change that bring something; speed only of devices whose bandwidth and arithmetic are not told apart."""
    apart = {price.device for price in prices if price.kind in ("bandwidth", "compute")}
    binding = (price for price in prices if price.binds and not (price.kind == "speed" and price.device in apart))
    return tuple(dict.fromkeys(price.kind for price in binding))


def _idle(subject: Subject, base: Plan, only: str | None) -> tuple[IdleDevice, ...]:
    """The devices without a layer, or the one asked about; the cost of giving it one."""
    idle = [name for name in subject.plan.idle if only in (None, name, _place(subject, name))]
    return tuple(IdleDevice(name, _forced_s(subject, base, _place(subject, name)) if only else None) for name in idle)


def _place(subject: Subject, name: str) -> str:
    """The group that the device is in, where stages are groups; else the device itself."""
    groups = subject.program.request.cluster.devices
    return next((group.name for group in groups if name in group.members), name)


def _forced_s(subject: Subject, base: Plan, name: str) -> float | None:
    if all(device.name != name for device in subject.program.request.cluster.devices):
        return None  # left over by groups of the plan's size
    plan = subject.solved(subject.with_rules((f"device('{name}').layers >= 1",)))
    return None if plan is None else plan.optimality.objective - base.optimality.objective
