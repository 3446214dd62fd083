"""Comparison: the plan beside every baseline, under the same quality budget and scored by the same costs."""

import time
from dataclasses import dataclass, replace

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning.replicas import replicas
from llmpq.program import Program
from llmpq.workload import Batch

ASSIGNMENTS = (
    "assign-joint",
    "assign-hand",
    "assign-pipeedge",
    "assign-adabits",
    "assign-transfer",
    "assign-uniform",
    "assign-even",
    "assign-fastest",
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One planner's figures, predicted; `reason` instead where it has no plan. `kept`: the quality budget is kept."""

    name: str
    tokens_per_s: float | None
    sensitivity: float | None
    kept: bool
    devices: tuple[str, ...]
    seconds: float
    reason: str | None = None


def compare(program: Program) -> tuple[Compared, ...]:
    """Every planner on a program with costs and sensitivity; infeasible ones with the reason."""
    bare = replace(program, plan=None, notices=(), stages=None)
    found = [_compared(bare, name) for name in ASSIGNMENTS]
    return (*found, _replicas(bare)) if isinstance(bare.request.workload, Batch) else tuple(found)


def _compared(program: Program, name: str) -> Compared:
    started = time.perf_counter()
    short = name.removeprefix("assign-")
    try:
        plan: Plan = run_passes(program, parse_pipeline(name)).require("plan")
    except (InfeasibleError, TimeLimitError) as error:
        reason = error.reasons[0] if isinstance(error, InfeasibleError) else str(error)
        return Compared(short, None, None, False, (), time.perf_counter() - started, reason)
    devices = tuple(stage.device for pipeline in plan.pipelines for stage in pipeline.stages)
    kept = _keeps(program, plan.quality.sensitivity)
    return Compared(short, plan.tokens_per_s, plan.quality.sensitivity, kept, devices, time.perf_counter() - started)


def _replicas(program: Program) -> Compared:
    started = time.perf_counter()
    try:
        found = replicas(program)
    except (InfeasibleError, TimeLimitError) as error:
        reason = error.reasons[0] if isinstance(error, InfeasibleError) else str(error)
        return Compared("replicas", None, None, False, (), time.perf_counter() - started, reason)
    kept, took = _keeps(program, found.sensitivity), time.perf_counter() - started
    return Compared("replicas", found.tokens_per_s, found.sensitivity, kept, found.devices, took)


def _keeps(program: Program, sensitivity: float) -> bool:
    budget = program.request.target.budget
    return budget is None or sensitivity <= budget * (1 + 1e-9)
