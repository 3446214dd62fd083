"""Linear model: columns and rows as lists, and one run of HiGHS over them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

Term = tuple[int, float]
TIGHT_TOLERANCE = 1e-9  # HiGHS allows 1e-10; its default of 1e-6 is kept unless a rounded point breaks a constraint


@dataclass(slots=True)
class LinearModel:
    """Minimise cost x subject to row bounds and column bounds; grows by `column` and `row`."""

    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    start: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def column(self, upper: float = inf, integer: bool = False, lower: float = 0.0, cost: float = 0.0) -> int:
        """Index of a new column."""
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.cost) - 1

    def row(self, terms: Iterable[Term], lower: float = -inf, upper: float = inf) -> None:
        """Adds lower <= sum of terms <= upper; terms of one column are summed."""
        merged: dict[int, float] = {}
        for column, coefficient in terms:
            merged[column] = merged.get(column, 0.0) + coefficient
        kept = [(column, coefficient) for column, coefficient in merged.items() if coefficient]
        self.index.extend(column for column, _ in kept)
        self.value.extend(coefficient for _, coefficient in kept)
        self.start.append(len(self.index))
        self.row_lower.append(lower)
        self.row_upper.append(upper)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What HiGHS answered: its status, the column values if there is a feasible point, and the dual bound."""

    status: str  # "optimal", "infeasible" or "stopped"
    values: tuple[float, ...] | None
    bound: float | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a run may stop: relative gap, seconds, objective (of the model) that a point has to beat."""

    gap: float = 0.0
    time_limit_s: float | None = None
    cutoff: float | None = None
    tight: bool = False


def run_highs(model: LinearModel, limits: Limits, relaxed: bool = False) -> Outcome:
    """One run on one thread, deterministic but for the time limit; `relaxed` drops integrality."""
    import highspy

    highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, value in _options(limits).items():
        highs.setOptionValue(option, value)
    highs.passModel(_highs_lp(model, relaxed))
    highs.run()
    status = highs.getModelStatus()
    info = highs.getInfo()
    known = highspy.HighsModelStatus
    names = {known.kOptimal: "optimal", known.kInfeasible: "infeasible", known.kObjectiveBound: "infeasible"}
    name = names.get(status, "stopped")
    values = tuple(highs.getSolution().col_value) if info.primal_solution_status == 2 else None
    bound = info.objective_function_value if relaxed else info.mip_dual_bound
    return Outcome(name, values, bound if abs(bound) < highspy.kHighsInf else None)


def _options(limits: Limits) -> dict[str, Any]:
    options: dict[str, Any] = {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": 0}
    options |= {"mip_rel_gap": limits.gap, "mip_abs_gap": 0.0}
    if limits.time_limit_s is not None:
        options["time_limit"] = max(0.0, limits.time_limit_s)
    if limits.cutoff is not None:
        options["objective_bound"] = limits.cutoff
    if limits.tight:
        options |= {"mip_feasibility_tolerance": TIGHT_TOLERANCE, "primal_feasibility_tolerance": TIGHT_TOLERANCE}
    return options


def _highs_lp(model: LinearModel, relaxed: bool) -> Any:
    import highspy
    import numpy as np

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(model.cost), len(model.row_lower)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = (np.array(a, float) for a in (model.cost, model.lower, model.upper))
    lp.row_lower_, lp.row_upper_ = np.array(model.row_lower, float), np.array(model.row_upper, float)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.array(model.start, np.int32)
    lp.a_matrix_.index_ = np.array(model.index, np.int32)
    lp.a_matrix_.value_ = np.array(model.value, float)
    if not relaxed:
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[flag] for flag in model.integer]
    return lp
