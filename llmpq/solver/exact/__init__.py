"""Exact solver: Lagrangian bounds, stages listed by label setting, branch and bound over the slowest stages."""

from llmpq.solver.exact.answer import solve

__all__ = ["solve"]
