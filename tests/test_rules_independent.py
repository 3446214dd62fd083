"""Random rules on random problems: z3, the solver of plans and enumeration agree, whatever the rules say."""

import random
from dataclasses import replace

import pytest

from llmpq.solver.problem import Problem
from llmpq.solver.rules import RuleContext, parse_rules, rule_rows
from llmpq.solver.smt import solve_small
from llmpq.solver.solve import solve
from tests.random_problems import OPTIONS, enumerate_optimum, random_problem


def random_rule(rng: random.Random, problem: Problem) -> str:
    """One rule of any form over the problem's layers and devices."""
    layers, device = problem.num_layers, f"'{rng.choice(problem.devices)}'"
    start = rng.randrange(layers)
    span = f"layers[{start}:{rng.randint(start + 1, layers)}]"
    option, compare = rng.choice(OPTIONS), rng.choice(("<=", ">=", "<", ">", "=="))
    several = ", ".join(rng.sample(OPTIONS, 2))
    bits = rng.choice((4, 8, 16))
    return rng.choice(
        (
            f"{span}.bits {compare} {bits}",
            f"{span}.precision in {{{several}}}",
            f"{span}.precision != {option}",
            f"{span}.device != {device}",
            f"layers[{start}].device == {rng.choice(('first_layer', 'last_layer'))}.device",
            f"last_layer.device == {device}",
            f"device({device}).precision in {{{several}}}",
            f"device({device}).bits {compare} {bits}",
            f"device({device}).layers {compare} {rng.randint(0, layers)}",
            f"count({option}) {compare} {rng.randint(0, layers)}",
            f"average_bits {rng.choice(('<=', '>='))} {rng.choice((5, 8, 10))}",
        )
    )


@pytest.mark.parametrize("part", range(4))
def test_three_independent_answers_agree(part: int) -> None:
    feasible = kept = 0
    for seed in range(5000 + 10 * part, 5010 + 10 * part):
        rng = random.Random(seed)
        problem = replace(random_problem(seed), capacity_bytes=(700,) * len(random_problem(seed).devices))
        texts = [random_rule(rng, problem) for _ in range(rng.randint(1, 3))]
        rows = rule_rows(parse_rules(texts), RuleContext.of(problem, (1,) * problem.num_layers))
        optimum = enumerate_optimum(problem, rows)
        expected = None if optimum is None else pytest.approx(optimum, rel=1e-6)
        assert solve(problem, gap=1e-8, rows=rows).objective == expected, (seed, texts)
        assert solve_small(problem, rows).objective == expected, (seed, texts)
        feasible += optimum is not None
        kept += optimum != enumerate_optimum(problem)
    assert feasible
    assert kept
