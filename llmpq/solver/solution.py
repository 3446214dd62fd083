"""Solution: what a solver found, and what it proved."""

from dataclasses import dataclass
from typing import Literal

from llmpq.solver.problem import Assignment

Status = Literal["optimal", "feasible", "infeasible", "time_limit", "cutoff"]
DEFAULT_GAP = 1e-4


@dataclass(frozen=True, slots=True)
class Solution:
    """The best assignment and a proven lower bound of every objective; `proven`: the gap asked for is closed.

    status: optimal, within the gap; feasible, a plan at the time limit; time_limit, no plan in time;
    infeasible, proven that none exists; cutoff, proven that none is better than the cutoff.
    bound None: nothing is known. seconds: from problem to answer.
    """

    assignment: Assignment | None
    objective: float | None
    bound: float | None
    proven: bool
    status: Status
    solver: str
    seconds: float

    @property
    def gap(self) -> float | None:
        """(objective - bound) / objective; None without a plan or a bound."""
        if self.objective is None or self.bound is None:
            return None
        return relative_gap(self.objective, self.bound)


def relative_gap(objective: float, bound: float) -> float:
    """(objective - bound) / objective, never negative; 0 for two zeros."""
    difference = objective - bound
    return max(0.0, difference / abs(objective)) if objective and difference > 0 else max(0.0, difference)
