"""Explanation of infeasibility: who is short by how much, and which demands cannot hold together."""

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.solver.demands import demands, highs_conflict, minimal_core
from llmpq.solver.milp import shortage, without_budget
from llmpq.solver.problem import Problem, Row
from llmpq.solver.rules import Rule
from llmpq.solver.smt import unsat_core
from llmpq.units import format_bytes

CORE_TIME_LIMIT_S = 5.0


def explain_infeasible(problem: Problem, rows: tuple[Row, ...] = (), rules: tuple[Rule, ...] = ()) -> tuple[str, ...]:
    """Reasons in the user's words, the most useful first: devices and bytes short, then a minimal set of demands in conflict.

    `rows` are those of `rules`, whose texts name them. Empty when nothing can be proven to be wrong.
    """
    return _short(problem, rows) + _conflict(problem, rows, rules)


def _short(problem: Problem, rows: tuple[Row, ...]) -> tuple[str, ...]:
    """Devices short of memory at any quality; if none is, those short at the quality asked for."""
    asked = problem.sensitivity_budget
    variants = [(without_budget(problem), "")]
    if asked is not None:
        variants.append((problem, f" at a quality budget of {asked:.4g} nats per token"))
    for variant, condition in variants:
        try:
            found = shortage(variant, rows)
        except (InfeasibleError, TimeLimitError):
            return ()  # memory is not what is in the way; the core says what is
        if found:
            return tuple(f"{device} is {format_bytes(missing)} short{condition}" for device, missing in found)
    return ()


def _conflict(problem: Problem, rows: tuple[Row, ...], rules: tuple[Rule, ...]) -> tuple[str, ...]:
    core = unsat_core(problem, rows, rules, CORE_TIME_LIMIT_S)
    if core is None:  # z3 ran out of time: ask the MILP the same question
        found = minimal_core(demands(problem, rows, rules), highs_conflict(problem, rows, CORE_TIME_LIMIT_S))
        core = None if found is None else tuple(demand.name for demand in found)
    return ("these cannot hold together: " + ", ".join(core),) if core else ()
