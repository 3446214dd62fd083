"""Tiny random assignment problems and their optimum by enumeration, for the tests of the solvers."""

import random
from itertools import combinations_with_replacement, product

from llmpq.solver.problem import Assignment, EndCost, Matrix, Problem, Row, evaluate

OPTIONS = ("w4a16", "w8a16", "16")


def random_problem(seed: int) -> Problem:
    """2-5 layers, 1-3 devices, 1-3 options: every decode model, overlap, unsupported cells, budgets, theta, use of devices."""
    rng = random.Random(seed)
    layers, devices, options, kinds = rng.randint(2, 5), rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 2)
    odds = rng.choice((0.0, 0.25))
    supported = [[[rng.random() >= odds for _ in range(options)] for _ in range(devices)] for _ in range(kinds)]

    def seconds(scale: float) -> tuple[tuple[tuple[float | None, ...], ...], ...]:
        return tuple(
            tuple(tuple(rng.uniform(0.1, 1) * scale if ok else None for ok in row) for row in kind) for kind in supported
        )

    def ends() -> EndCost:
        prefill, decode = (tuple(rng.uniform(0, scale) for _ in range(devices)) for scale in (0.05, 0.005))
        return EndCost(prefill, decode, tuple(rng.randint(0, 60) for _ in range(devices)))

    def links(scale: float) -> Matrix:
        return tuple(tuple(rng.uniform(0, scale) for _ in range(devices)) for _ in range(devices))

    use = rng.choice(("any", "any", "all", "ends"))
    layer_bytes = tuple(
        tuple(tuple(rng.randint(50, 100) * (b + 1) if ok else None for b, ok in enumerate(row)) for row in kind)
        for kind in supported
    )
    return Problem(
        options=OPTIONS[:options],
        devices=tuple(f"D:{device}" for device in range(devices)),
        layer_kind=tuple(rng.randrange(kinds) for _ in range(layers)),
        prefill_s=seconds(0.1),
        decode_s=seconds(0.01),
        layer_bytes=layer_bytes,
        first_stage=ends(),
        last_stage=ends(),
        link_prefill_s=links(0.1),
        link_decode_s=links(0.01),
        overlap=rng.random() < 0.5,
        capacity_bytes=tuple(rng.choice((-5, *[rng.randint(200, 900)] * 3, 2000)) for _ in range(devices)),
        sensitivity=_sensitivity(rng, layers, options),
        sensitivity_budget=rng.choice((None, None, rng.uniform(0.1, 0.6) * layers)),
        theta=rng.choice((None, 0.2, 2.0)),
        prefill_micro_batches=rng.randint(1, 4),
        decode_micro_batches=rng.randint(1, 4),
        gen_len=rng.choice((1, 2, 20)),
        decode_model=rng.choice(("round_trip", "per_token_flush", "llm_pq")),
        every_device_used=use == "all",
        first_and_last_used=use == "ends",
    )


def _sensitivity(rng: random.Random, layers: int, options: int) -> Matrix:
    """Falling with the bits; one time in three the same for every layer."""
    rows = [tuple(rng.uniform(0, 1) * (options - 1 - b) for b in range(options)) for _ in range(layers)]
    return (rows[0],) * layers if rng.random() < 1 / 3 else tuple(rows)


def enumerate_optimum(problem: Problem, rows: tuple[Row, ...] = ()) -> float | None:
    """The least objective over every contiguous placement and every choice of options; None when none is feasible."""
    layers = problem.num_layers
    objectives = []
    for device in combinations_with_replacement(range(len(problem.devices)), layers):
        for option in product(range(len(problem.options)), repeat=layers):
            assignment = Assignment(device, option)
            evaluation = evaluate(problem, assignment)
            if not evaluation.violations and all(row.holds(assignment) for row in rows):
                objectives.append(evaluation.objective)
    return min(objectives, default=None)
