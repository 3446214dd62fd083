"""Cache choice: the precision of the KV cache with which the plan is fastest."""

from collections.abc import Callable

from llmpq.errors import InfeasibleError, InputError
from llmpq.plan import Plan
from llmpq.precision import CACHE_PRECISIONS, CachePrecision
from llmpq.program import Program

CLEARLY = 1e-3  # relative: a coarser cache must gain more


def fastest_cache(planned: Callable[[CachePrecision], Program]) -> Program:
    """The program with the best plan of those for each precision that have one; a quality target that is kept comes first.

    Raises the InfeasibleError of 16 bits where no precision has a plan, InputError where the passes make none.
    """
    best: Program | None = None
    refused: list[InfeasibleError] = []
    for precision in CACHE_PRECISIONS:
        try:
            found = planned(precision)
        except InfeasibleError as error:
            refused.append(error)
            continue
        if found.plan is None:
            raise InputError("--kv-precision auto compares plans, and these passes make none; name one: 16, int8 or fp8")
        if best is None or _rank(found) < _rank(best, 1.0 - CLEARLY):
            best = found
    if best is None:
        raise refused[0]
    return best


def _rank(program: Program, factor: float = 1.0) -> tuple[bool, float]:
    """Whether the target is missed, then the objective in seconds times a factor."""
    plan: Plan = program.require("plan")
    target = program.request.target.budget
    return target is not None and plan.quality.sensitivity > target, factor * plan.optimality.objective
