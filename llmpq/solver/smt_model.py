"""SMT model: the assignment problem in integer arithmetic over cut points and counts per class, device and option."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import ceil, floor
from typing import Any

from llmpq.solver.classes import Cell, Classes, ClassRow, classify
from llmpq.solver.demands import Demand, with_support
from llmpq.solver.problem import Cells, Matrix, Problem, Row

BUDGET_STEPS = 10**9  # sensitivities are rounded down to this part of the budget: what z3 refutes is refuted

Expression = Any  # z3 has no types


@dataclass(frozen=True, slots=True)
class Encoding:
    """Device j holds layers [cut[j], cut[j + 1]); counts[class, device, option]; `hard` ties them together."""

    classes: Classes
    cut: tuple[Expression, ...]
    counts: dict[Cell, Expression]
    hard: tuple[Expression, ...]

    def used(self, device: int) -> Expression:
        return self.cut[device] < self.cut[device + 1]

    def holds(self, layer: int, device: int) -> Expression:
        import z3

        return z3.And(self.cut[device] <= layer, layer < self.cut[device + 1])


def encode(problem: Problem, rows: tuple[Row, ...], by_sensitivity: bool | None = None) -> Encoding:
    """Cut points and counts, with the constraints that no demand can lift: every layer once, in order.

    Supported precisions are a demand, so every cell has a count.
    """
    import z3

    layers, devices = problem.num_layers, range(len(problem.devices))
    needed = problem.sensitivity_budget is not None if by_sensitivity is None else by_sensitivity
    classes = classify(with_support(problem, set()), rows, needed)
    cut = (z3.IntVal(0), *(z3.Int(f"cut {j}") for j in devices[1:]), z3.IntVal(layers))
    sizes = range(len(classes.members)), devices, range(len(problem.options))
    counts = {(c, j, b): z3.Int(f"count {c} {j} {b}") for c in sizes[0] for j in sizes[1] for b in sizes[2]}
    hard = [cut[j] <= cut[j + 1] for j in devices] + [count >= 0 for count in counts.values()]
    for number, members in enumerate(classes.members):
        for j in devices:
            here = members_before(members, layers, cut[j + 1]) - members_before(members, layers, cut[j])
            hard.append(z3.Sum([counts[number, j, b] for b in sizes[2]]) == here)
    return Encoding(classes, cut, counts, tuple(hard))


def members_before(members: Sequence[int], layers: int, cut: Expression) -> Expression:
    """How many of these layers come before the cut: arithmetic on the cut where they are a run."""
    import z3

    first, last = members[0], members[-1]
    if len(members) == layers:
        return cut
    if last - first + 1 == len(members):
        return z3.If(cut <= first, 0, z3.If(cut > last, len(members), cut - first))
    return z3.Sum([z3.If(cut > layer, 1, 0) for layer in members])


def demand_constraints(problem: Problem, encoding: Encoding, demand: Demand) -> tuple[Expression, ...]:
    """The constraints that a demand stands for."""
    if demand.kind == "row":
        return tuple(_row(problem, encoding, row) for row in encoding.classes.rows if row.label == demand.label)
    if demand.kind == "budget":
        return (_budget(problem, encoding),)
    if demand.kind == "use":
        return tuple(encoding.used(device) for device in problem.required_devices)
    assert demand.device is not None
    return (_memory if demand.kind == "memory" else _support)(problem, encoding, demand.device)


def _memory(problem: Problem, encoding: Encoding, device: int) -> tuple[Expression, ...]:
    import z3

    held = z3.Sum(
        [
            count * (problem.layer_bytes[encoding.classes.kind(problem, number)][device][option] or 0)
            for (number, place, option), count in encoding.counts.items()
            if place == device
        ]
    )
    ends = z3.If(encoding.holds(0, device), problem.first_stage.bytes[device], 0)
    ends += z3.If(encoding.holds(problem.num_layers - 1, device), problem.last_stage.bytes[device], 0)
    return (z3.Implies(encoding.used(device), held + ends <= problem.capacity_bytes[device]),)


def _support(problem: Problem, encoding: Encoding, device: int) -> tuple[Expression, ...]:
    supported = set(encoding.classes.cells(problem))
    return tuple(count == 0 for cell, count in encoding.counts.items() if cell[1] == device and cell not in supported)


def _budget(problem: Problem, encoding: Encoding) -> Expression:
    import z3

    budget = Fraction(problem.sensitivity_budget or 0.0)
    step = (abs(budget) or 1) / BUDGET_STEPS
    weights = {cell: floor(Fraction(encoding.classes.sensitivity(problem, cell)) / step) for cell in encoding.counts}
    return z3.Sum([count * weights[cell] for cell, count in encoding.counts.items()]) <= ceil(budget / step)


def _row(problem: Problem, encoding: Encoding, row: ClassRow) -> Expression:
    """A row in exact rationals; equal coefficients of one device are one count of layers."""
    import z3

    groups: dict[tuple[int, float], list[int]] = {}
    for layer, device, coefficient in sorted(row.placement):
        groups.setdefault((device, coefficient), []).append(layer)
    terms = [encoding.counts[cell] * exact(c) for cell, c in row.counts]
    for (device, coefficient), layers in groups.items():
        before, after = (members_before(layers, problem.num_layers, encoding.cut[device + k]) for k in range(2))
        terms.append((after - before) * exact(coefficient))
    total, rhs = z3.Sum(terms) if terms else z3.RealVal(0), exact(row.rhs)
    return {"<=": total <= rhs, ">=": total >= rhs, "==": total == rhs}[row.sense]


def exact(value: float) -> Expression:
    """The rational that a float is."""
    import z3

    fraction = Fraction(value)
    return z3.Q(fraction.numerator, fraction.denominator)


def objective_constraints(problem: Problem, encoding: Encoding) -> tuple[Expression, tuple[Expression, ...]]:
    """The objective in seconds over exact rationals, and the constraints of its auxiliary variables."""
    import z3

    prefill, decode, trip = z3.Real("slowest prefill"), z3.Real("slowest decode"), z3.Real("trip")
    one = _phase(problem, encoding, problem.prefill_s, problem.first_stage.prefill_s, problem.last_stage.prefill_s)
    two = _phase(problem, encoding, problem.decode_s, problem.first_stage.decode_s, problem.last_stage.decode_s)
    links_one = _links(problem, encoding, problem.link_prefill_s, returns=False)
    links_two = _links(problem, encoding, problem.link_decode_s, returns=True)
    constraints = _slowest(problem, one, links_one, prefill) + _slowest(problem, two, links_two, decode)
    total, rounds, batches = z3.Sum(two + links_two), problem.gen_len - 1, problem.decode_micro_batches
    seconds = {
        "round_trip": rounds * trip,
        "per_token_flush": rounds * (total + (batches - 1) * decode),
        "llm_pq": total + rounds * (batches - 1) * decode,
    }[problem.decode_model]
    constraints += [trip >= total, trip >= batches * decode]
    loss = z3.Sum([count * exact(encoding.classes.sensitivity(problem, cell)) for cell, count in encoding.counts.items()])
    objective = z3.Sum(one + links_one) + (problem.prefill_micro_batches - 1) * prefill + seconds
    return objective + exact(problem.theta or 0.0) * loss, tuple(constraints)


def _phase(
    problem: Problem, encoding: Encoding, cells: Cells, first: tuple[float, ...], last: tuple[float, ...]
) -> list[Expression]:
    """Compute seconds of every device."""
    import z3

    stages = []
    for device in range(len(problem.devices)):
        terms = [z3.If(encoding.holds(0, device), exact(first[device]), 0)]
        terms.append(z3.If(encoding.holds(problem.num_layers - 1, device), exact(last[device]), 0))
        for (number, place, option), count in encoding.counts.items():
            cell = cells[encoding.classes.kind(problem, number)][device][option]
            if place == device and cell is not None:
                terms.append(count * exact(cell))
        stages.append(z3.Sum(terms))
    return stages


def _links(problem: Problem, encoding: Encoding, seconds: Matrix, returns: bool) -> list[Expression]:
    """Seconds of the link that leaves every device: to the next used one, or from the last back to the first."""
    import z3

    devices = range(len(problem.devices))
    terms: list[list[Expression]] = [[z3.RealVal(0)] for _ in devices]
    for a, b in combinations(devices, 2):
        between = [z3.Not(encoding.used(device)) for device in range(a + 1, b)]
        terms[a].append(z3.If(z3.And(encoding.used(a), encoding.used(b), *between), exact(seconds[a][b]), 0))
    for b in devices if returns else ():
        for a in range(b + 1):
            closes = z3.And(encoding.holds(problem.num_layers - 1, b), encoding.holds(0, a))
            terms[b].append(z3.If(closes, exact(seconds[b][a]), 0))
    return [z3.Sum(parts) for parts in terms]


def _slowest(problem: Problem, stages: list[Expression], links: list[Expression], slowest: Expression) -> list[Expression]:
    if problem.overlap:
        return [slowest >= part for part in stages + links]
    return [slowest >= stage + link for stage, link in zip(stages, links)]
