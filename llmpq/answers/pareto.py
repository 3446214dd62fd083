"""Pareto front: plans of which none is both faster and better, by a sweep over quality budgets under the same costs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic

from llmpq.answers.subject import GAP
from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.plan import Optimality, Plan
from llmpq.planning.candidates import build_problem
from llmpq.planning.fit import least_sensitive
from llmpq.planning.make_plan import make_plan
from llmpq.planning.search import Found, search
from llmpq.planning.space import EVERYTHING
from llmpq.program import Program
from llmpq.solver.problem import evaluate

SLACK = 1e-9  # relative, of the budget that a plan was found with

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """The fastest plan within `budget` (None: at any loss); memory_bytes: of all devices, what is held."""

    budget: float | None
    sensitivity: float
    tokens_per_s: float
    memory_bytes: int
    proven: bool
    plan: Plan


@dataclass(frozen=True, slots=True)
class _Gap:
    """Budgets (low, high) nobody has searched; `slow`, `fast`: objectives of the plans at either end."""

    low: float
    high: float
    slow: float
    fast: float

    @property
    def area(self) -> float:
        return (self.high - self.low) * (self.slow - self.fast)


def pareto(
    program: Program, points: int = 12, time_limit_s: float = 5.0, progress: Progress | None = None
) -> tuple[ParetoPoint, ...]:
    """The front of at most `points` plans, from the least loss to the fastest; costs and sensitivity are the program's own.

    Between the fastest plan and the least sensitive one, the budget is halved where most is still open: the product of the
    losses and the seconds between two neighbours. Each search takes `time_limit_s` at most. Raises InfeasibleError when
    nothing fits.
    """
    told = progress or (lambda what, done, total: None)
    fastest = _search(program, None, (), time_limit_s)
    if fastest is None:
        raise InfeasibleError(("no plan fits, whatever its loss; `llmpq plan` tells who is short",))
    told("pareto", 1, points)
    least = least_sensitive(program, EVERYTHING, monotonic() + time_limit_s)
    found: list[tuple[float | None, Found]] = [(None, fastest)]
    loss = _loss(fastest)
    bottom = loss if least is None else min(loss, _loss(least))
    best = _search(program, bottom * (1 + SLACK), (item for _, item in found), time_limit_s)
    gaps: list[_Gap] = []
    if best is not None and bottom < loss:
        found.append((bottom, best))
        gaps.append(_Gap(_loss(best), loss, best.objective, fastest.objective))
    while gaps and len(found) < points:
        gap = max(gaps, key=lambda item: item.area)
        gaps.remove(gap)
        budget = (gap.low + gap.high) / 2
        middle = _search(program, budget, (item for _, item in found), time_limit_s)
        told("pareto", len(found), points)
        if middle is None:
            continue
        found.append((budget, middle))
        gaps += _halves(gap, budget, _loss(middle), middle.objective)
    return front(tuple(_point(program, budget, item) for budget, item in found))


def _halves(gap: _Gap, budget: float, loss: float, objective: float) -> list[_Gap]:
    """What is left to search beside the plan found: budgets below its loss, and those above its budget."""
    halves = [_Gap(gap.low, loss, gap.slow, objective), _Gap(budget, gap.high, objective, gap.fast)]
    return [half for half in halves if half.high > half.low and half.slow - half.fast > GAP * half.slow]


def front(points: tuple[ParetoPoint, ...]) -> tuple[ParetoPoint, ...]:
    """The points by loss ascending, each faster than all before it by more than the gap of the searches."""
    ordered = sorted(points, key=lambda point: (point.sensitivity, -point.tokens_per_s))
    kept: list[ParetoPoint] = []
    for point in ordered:
        if not kept or point.tokens_per_s > kept[-1].tokens_per_s * (1 + GAP):
            kept.append(point)
    return tuple(kept)


def _search(program: Program, budget: float | None, known: Iterable[Found], time_limit_s: float) -> Found | None:
    """The fastest plan within the budget, starting from those known that keep it; None: none was found in time."""
    starts = [(item.candidate, build_problem(program, item.candidate, budget), item.assignment) for item in known]
    try:
        return search(program, budget, starts=starts, gap=GAP, deadline=monotonic() + time_limit_s)
    except TimeLimitError:
        return None


def _loss(found: Found) -> float:
    return evaluate(found.problem, found.assignment).sensitivity


def _plan(program: Program, budget: float | None, found: Found) -> Plan:
    optimality = Optimality(found.objective, found.bound, found.proven, "exact search")
    return make_plan(program, found.candidate, found.problem, found.assignment, optimality, budget)


def _point(program: Program, budget: float | None, found: Found) -> ParetoPoint:
    plan = _plan(program, budget, found)
    held = sum(memory.total for memory in plan.prediction.memory)
    return ParetoPoint(budget, plan.quality.sensitivity, plan.tokens_per_s, held, found.proven, plan)
