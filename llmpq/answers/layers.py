"""Layer answers: what else a layer could be, what stands against it, and the best plan without its present choice."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from llmpq.answers.subject import Subject
from llmpq.errors import InputError, TimeLimitError
from llmpq.plan import Plan
from llmpq.planning.search import rows_of
from llmpq.solver.problem import Assignment, evaluate
from llmpq.units import format_bytes

Against = Literal["memory", "quality", "rule", "unsupported"]


@dataclass(frozen=True, slots=True)
class Obstacle:
    kind: Against
    words: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another option or the neighbouring device for one layer, everything else as it is; differences to the plan.

    seconds: of the objective, None where the device cannot run it; nbytes: of the layer; against: what it would break.
    """

    device: str
    option: str
    seconds: float | None
    nbytes: int | None
    nats: float
    against: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True)
class NextBest:
    """The best plan in which the layer is not what it is: differences to the best plan, and how many other layers change.

    device, option: the layer's there; None where there is no such plan, `reason` says so.
    """

    without: str
    device: str | None
    option: str | None
    seconds: float | None
    nbytes: int | None
    nats: float | None
    others: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LayerAnswer:
    """One layer: where and what it is, its bytes with cache, its share of the loss, why, and what else it could be.

    bound_by: what every faster alternative would break; empty: none is faster.
    """

    layer: int
    device: str
    option: str
    nbytes: int
    nats: float
    bound_by: tuple[Against, ...]
    alternatives: tuple[Alternative, ...]
    next_best: tuple[NextBest, ...]


def answer_layer(subject: Subject, base: Plan, layer: int) -> LayerAnswer:
    """Why the layer is where and what it is. `base`: the best plan as things are. Raises InputError for a layer that is not."""
    problem, assignment = subject.problem, subject.assignment
    if not 0 <= layer < problem.num_layers:
        raise InputError(f"layer {layer} is not in {subject.plan.model}; it has layers 0 to {problem.num_layers - 1}")
    device, option = problem.devices[assignment.device[layer]], problem.options[assignment.option[layer]]
    found = tuple(_alternatives(subject, layer))
    kinds = dict.fromkeys(item.kind for other in found if _is_faster(other) for item in other.against)
    texts = [f"layers[{layer}].precision != {option}"]
    texts += [f"layers[{layer}].device != '{device}'"] if len(subject.plan.cluster.devices) > 1 else []
    return LayerAnswer(
        layer,
        device,
        option,
        _nbytes(subject, layer, assignment) or 0,
        problem.sensitivity[layer][assignment.option[layer]],
        tuple(kinds),
        tuple(sorted(found, key=lambda other: (bool(other.against), other.seconds or 0.0))),
        tuple(_next_best(subject, base, layer, text) for text in texts if len(problem.options) > 1 or "device" in text),
    )


def _is_faster(alternative: Alternative) -> bool:
    return alternative.seconds is not None and alternative.seconds < 0 and bool(alternative.against)


def _alternatives(subject: Subject, layer: int) -> Iterator[Alternative]:
    """Every other option on the layer's device; on the devices of its neighbours too, where it ends a stage of several."""
    devices = subject.assignment.device
    here = devices[layer]
    around = [devices[other] for other in (layer - 1, layer + 1) if 0 <= other < len(devices) and devices[other] != here]
    places = [here, *(around if devices.count(here) > 1 else ())]
    before = (here, subject.assignment.option[layer])
    for device in places:
        for option in range(len(subject.problem.options)):
            if (device, option) != before:
                yield _alternative(subject, layer, device, option)


def _alternative(subject: Subject, layer: int, device: int, option: int) -> Alternative:
    problem, assignment, now = subject.problem, subject.assignment, subject.evaluation
    changed = Assignment(_put(assignment.device, layer, device), _put(assignment.option, layer, option))
    names = problem.devices[device], problem.options[option]
    nats = problem.sensitivity[layer][option] - problem.sensitivity[layer][assignment.option[layer]]
    nbytes = _nbytes(subject, layer, changed)
    if nbytes is None:
        unsupported = Obstacle("unsupported", f"{names[1]} is unsupported on {names[0]} by {subject.plan.engine}")
        return Alternative(*names, None, None, nats, (unsupported,))
    after = evaluate(problem, changed)
    more = nbytes - (_nbytes(subject, layer, assignment) or 0)
    return Alternative(*names, after.objective - now.objective, more, nats, tuple(_obstacles(subject, changed)))


def _put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _nbytes(subject: Subject, layer: int, assignment: Assignment) -> int | None:
    problem = subject.problem
    return problem.layer_bytes[problem.layer_kind[layer]][assignment.device[layer]][assignment.option[layer]]


def _obstacles(subject: Subject, assignment: Assignment) -> Iterator[Obstacle]:
    """What the assignment breaks, in the user's words."""
    problem, after = subject.problem, evaluate(subject.problem, assignment)
    for name, held, room in zip(problem.devices, after.bytes, problem.capacity_bytes):
        if held > room:
            yield Obstacle("memory", f"{name} would be {format_bytes(held - room)} short")
    budget = problem.sensitivity_budget
    if budget is not None and after.sensitivity > budget * (1 + 1e-9):
        yield Obstacle("quality", f"{after.sensitivity - budget:.2g} nats over the budget of {budget:.4f}")
    broken = dict.fromkeys(row.label for row in rows_of(subject.program, subject.candidate) if not row.holds(assignment))
    yield from (Obstacle("rule", f"breaks the constraint {label}") for label in broken)


def _next_best(subject: Subject, base: Plan, layer: int, rule: str) -> NextBest:
    """The best plan under one rule more."""
    stripped = replace(subject, program=subject.with_rules((rule,)))
    try:
        plan = stripped.solved()
    except TimeLimitError:
        return NextBest(rule, None, None, None, None, None, 0, "no plan was found in time")
    if plan is None:
        return NextBest(rule, None, None, None, None, None, 0, "no plan fits otherwise")
    held = [sum(memory.total for memory in item.prediction.memory) for item in (base, plan)]
    before, after = _choices(base), _choices(plan)
    others = sum(a != b for i, (a, b) in enumerate(zip(before, after)) if i != layer)
    return NextBest(
        rule,
        *after[layer],
        plan.optimality.objective - base.optimality.objective,
        held[1] - held[0],
        plan.quality.sensitivity - base.quality.sensitivity,
        others,
    )


def _choices(plan: Plan) -> list[tuple[str, str]]:
    """Device and option of every layer."""
    return [(stage.device, option) for stage in plan.stages for option in stage.options]
