"""Explanation of infeasibility: who is short by how much, and which demands cannot hold together."""

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.solver.demands import demands, highs_conflict, minimal_core
from llmpq.solver.milp import Shortage, shortage, without_budget
from llmpq.solver.problem import Problem, Row
from llmpq.solver.rules import Rule
from llmpq.solver.smt import unsat_core
from llmpq.units import format_bytes

CORE_TIME_LIMIT_S = 2.0
MANY_DEVICES = 4  # named one by one up to this number


def explain_infeasible(
    problem: Problem, rows: tuple[Row, ...] = (), rules: tuple[Rule, ...] = (), short: Shortage | None = None
) -> tuple[str, ...]:
    """Reasons in the user's words, the most useful first: devices and bytes short, then a minimal set of demands in conflict.

    `rows` are those of `rules`, whose texts name them; `short`: what is short at any quality, where that is known already.
    Empty when nothing can be proven to be wrong.
    """
    return _memory_reasons(problem, rows, short) + _conflict(problem, rows, rules)


def _memory_reasons(problem: Problem, rows: tuple[Row, ...], known: Shortage | None) -> tuple[str, ...]:
    found, at_budget = short_devices(problem, rows, known)
    condition = f" at a quality budget of {problem.sensitivity_budget:.4g} nats per token" if at_budget else ""
    return tuple(f"{device} is {format_bytes(missing)} short{condition}" for device, missing in found)


def short_devices(problem: Problem, rows: tuple[Row, ...], known: Shortage | None) -> tuple[Shortage, bool]:
    """Devices short of memory at any quality (`known`: found already); if none is, those short at the budget: then True.

    Empty when memory is not what is in the way.
    """
    try:
        found = shortage(without_budget(problem), rows) if known is None else known
        if found or problem.sensitivity_budget is None:
            return found, False
        return shortage(problem, rows), True
    except (InfeasibleError, TimeLimitError):
        return (), False


def _conflict(problem: Problem, rows: tuple[Row, ...], rules: tuple[Rule, ...]) -> tuple[str, ...]:
    core = unsat_core(problem, rows, rules, CORE_TIME_LIMIT_S)
    if core is None:  # z3 ran out of time: ask the MILP the same question
        found = minimal_core(demands(problem, rows, rules), highs_conflict(problem, rows, CORE_TIME_LIMIT_S))
        core = None if found is None else tuple(demand.name for demand in found)
    return (f"these cannot hold together: {', '.join(_folded(problem, core))}",) if core else ()


def _folded(problem: Problem, core: tuple[str, ...]) -> tuple[str, ...]:
    """The names, those of the memory of many devices as one when it is that of all."""
    memory = tuple(name for name in core if name.startswith("memory of "))
    if len(memory) <= MANY_DEVICES or len(memory) < len(problem.devices):
        return core
    total = format_bytes(sum(max(0, capacity) for capacity in problem.capacity_bytes))
    return (f"memory of all {len(memory)} devices ({total})", *(name for name in core if name not in memory))
