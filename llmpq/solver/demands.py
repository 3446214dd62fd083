"""Demands: everything about a problem that may have to give way, in the user's words, and the problem without some of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llmpq.solver.classes import classify
from llmpq.solver.linear import Limits, run_highs
from llmpq.solver.milp import with_ample_memory, without_budget
from llmpq.solver.model import add_budget, add_memory, placement_model
from llmpq.solver.problem import Cells, Problem, Row
from llmpq.solver.rules import Rule
from llmpq.units import format_bytes

DemandKind = Literal["memory", "support", "budget", "use", "row"]


@dataclass(frozen=True, slots=True)
class Demand:
    """One demand: `device` for memory and support, `label` of its rows for a rule."""

    name: str
    kind: DemandKind
    device: int | None = None
    label: str | None = None


def demands(problem: Problem, rows: tuple[Row, ...], rules: tuple[Rule, ...] = ()) -> tuple[Demand, ...]:
    """Memory and supported precisions per device, the budget, use of devices, every label of the rows."""
    found = [
        Demand(f"memory of {name} ({format_bytes(max(0, capacity))})", "memory", device)
        for device, (name, capacity) in enumerate(zip(problem.devices, problem.capacity_bytes))
    ]
    partial = [j for j in range(len(problem.devices)) if any(None in kind[j] for kind in problem.layer_bytes)]
    found += [Demand(f"precisions supported on {problem.devices[device]}", "support", device) for device in partial]
    if problem.sensitivity_budget is not None:
        found.append(Demand(f"quality budget {problem.sensitivity_budget:.4g} nats per token", "budget"))
    if problem.required_devices:
        whose = "every device" if problem.every_device_used else "the first and the last device"
        found.append(Demand(f"{whose} must hold a layer", "use"))
    texts = {rule.text for rule in rules}
    for label in dict.fromkeys(row.label for row in rows):
        found.append(Demand(f"constraint {label!r}" if label in texts or not rules else label, "row", label=label))
    return tuple(found)


def keeping(problem: Problem, rows: tuple[Row, ...], kept: Iterable[Demand]) -> tuple[Problem, tuple[Row, ...]]:
    """The problem and the rows with only these demands."""
    chosen = tuple(kept)
    memory, support = ({demand.device for demand in chosen if demand.kind == kind} for kind in ("memory", "support"))
    kinds = {demand.kind for demand in chosen}
    labels = {demand.label for demand in chosen if demand.kind == "row"}
    problem = with_support(problem, support)
    problem = with_ample_memory(problem, (device for device in range(len(problem.devices)) if device not in memory))
    problem = problem if "budget" in kinds else without_budget(problem)
    if "use" not in kinds:
        problem = replace(problem, every_device_used=False, first_and_last_used=False)
    return problem, tuple(row for row in rows if row.label in labels)


def with_support(problem: Problem, kept: set[int | None]) -> Problem:
    """The problem in which every device but these runs what it does not support, at no cost."""

    def fill(cells: Cells) -> Cells:
        return tuple(
            tuple(row if j in kept else tuple(0 if cell is None else cell for cell in row) for j, row in enumerate(kind))
            for kind in cells
        )

    sizes = fill(problem.layer_bytes)
    layer_bytes = tuple(tuple(tuple(None if size is None else int(size) for size in row) for row in kind) for kind in sizes)
    return replace(problem, prefill_s=fill(problem.prefill_s), decode_s=fill(problem.decode_s), layer_bytes=layer_bytes)


Conflict = Callable[[tuple[Demand, ...]], bool | None]  # True: proven that they cannot hold together; None: not known


def minimal_core(everything: tuple[Demand, ...], conflict: Conflict) -> tuple[Demand, ...] | None:
    """A set of demands that cannot hold together, minimal by deletion; None when no conflict is proven."""
    if not conflict(everything):
        return None
    core = everything
    for demand in reversed(everything):
        smaller = tuple(kept for kept in core if kept != demand)
        if conflict(smaller):
            core = smaller
    return core


def highs_conflict(problem: Problem, rows: tuple[Row, ...], time_limit_s: float) -> Conflict:
    """Decides by a MILP without an objective."""

    def conflict(kept: tuple[Demand, ...]) -> bool | None:
        relaxed, left = keeping(problem, rows, kept)
        classes = classify(relaxed, left, by_sensitivity=relaxed.sensitivity_budget is not None)
        model = placement_model(relaxed, classes, 1.0)
        add_memory(relaxed, model)
        add_budget(relaxed, model)
        outcome = run_highs(model.linear, Limits(time_limit_s=time_limit_s))
        return None if outcome.status == "stopped" else outcome.status == "infeasible"

    return conflict
