"""Assignment model: the MILP of a problem, with monotone cumulative placement and arcs between consecutive used devices."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

from llmpq.solver.classes import Cell, Classes, ClassRow, classify
from llmpq.solver.linear import LinearModel, Term
from llmpq.solver.problem import Assignment, Cells, Matrix, Problem, Row

MEMORY_SCALE = 1000.0  # a capacity in the model: HiGHS's 1e-6 is then 1e-9 of it
OBJECTIVE_SCALE = 1000.0  # a typical objective in the model


@dataclass(frozen=True, slots=True)
class Slowest:
    """The column of the slowest stage of a phase, in `unit` seconds, and what layers take there."""

    column: int
    cells: Cells
    unit: float


@dataclass(frozen=True, slots=True)
class Model:
    """Linear model of a problem and the meaning of its columns.

    cumulative[layer][device] = 1 when the layer is on that device or an earlier one; counts[class, device, option];
    `unit`: seconds (nats, bytes) per unit of the model's objective.
    """

    linear: LinearModel
    classes: Classes
    cumulative: tuple[tuple[int, ...], ...]
    counts: dict[Cell, int]
    used: tuple[int, ...]
    unit: float
    slowest: tuple[Slowest, ...] = ()

    def placed(self, layer: int, device: int, scale: float = 1.0) -> list[Term]:
        """Terms of scale * [layer is on device]."""
        here = [(self.cumulative[layer][device], scale)]
        return here + [(self.cumulative[layer][device - 1], -scale)] if device else here

    def assignment(self, values: tuple[float, ...]) -> Assignment | None:
        """The assignment of an integral point; None if rounding breaks it."""
        device = (sum(values[column] < 0.5 for column in row) for row in self.cumulative)
        return self.classes.assignment(device, {cell: round(values[column]) for cell, column in self.counts.items()})


def placement_model(problem: Problem, classes: Classes, unit: float, shave: float = 0.0) -> Model:
    """Columns and rows that say where layers may be: contiguity, use of devices, and the user's rows; no memory, no cost."""
    linear = LinearModel()
    devices, last = range(len(problem.devices)), len(problem.devices) - 1
    cumulative = tuple(
        tuple(linear.column(1.0, True, lower=float(device == last)) for device in devices) for _ in problem.layer_kind
    )
    counts = {cell: linear.column(float(len(classes.members[cell[0]])), True) for cell in classes.cells(problem)}
    used = tuple(linear.column(1.0, True, lower=float(device in problem.required_devices)) for device in devices)
    model = Model(linear, classes, cumulative, counts, used, unit)
    _add_order(problem, model)
    _add_counts(problem, model)
    for row in classes.rows:
        _add_row(model, row, shave)
    return model


def _add_order(problem: Problem, model: Model) -> None:
    linear, cumulative = model.linear, model.cumulative
    for layer in range(problem.num_layers):
        for device in range(len(problem.devices)):
            linear.row([*model.placed(layer, device), (model.used[device], -1.0)], upper=0.0)
            if layer:
                linear.row([(cumulative[layer - 1][device], 1.0), (cumulative[layer][device], -1.0)], lower=0.0)
    for device, column in enumerate(model.used):
        everywhere = [term for layer in range(problem.num_layers) for term in model.placed(layer, device)]
        linear.row([*everywhere, (column, -1.0)], lower=0.0)


def _add_counts(problem: Problem, model: Model) -> None:
    """Counts of a class on a device add up to its layers there."""
    for number, layers in enumerate(model.classes.members):
        for device in range(len(problem.devices)):
            options = problem.supported(model.classes.kind(problem, number), device)
            chosen = [(model.counts[number, device, option], -1.0) for option in options]
            here = [term for layer in layers for term in model.placed(layer, device)]
            model.linear.row(here + chosen, 0.0, 0.0)


def _add_row(model: Model, row: ClassRow, shave: float) -> None:
    if row.forbids:
        for cell, _ in row.counts:
            model.linear.upper[model.counts[cell]] = 0.0
        for layer, device, _ in row.placement:
            model.linear.row(model.placed(layer, device), upper=0.0)
        return
    sizes = [abs(c) for _, _, c in row.placement] + [abs(c) for _, c in row.counts]
    scale = 1.0 / max(sizes, default=1.0)
    terms = [(model.counts[cell], c * scale) for cell, c in row.counts]
    terms += [term for layer, device, c in row.placement for term in model.placed(layer, device, c * scale)]
    margin = shave * max(1.0, abs(row.rhs)) if row.sense != "==" else 0.0
    lower = (row.rhs + margin) * scale if row.sense != "<=" else -math.inf
    upper = (row.rhs - margin) * scale if row.sense != ">=" else math.inf
    model.linear.row(terms, lower, upper)


def device_terms(
    problem: Problem, model: Model, device: int, cells: Cells, ends: tuple[float, float], scale: float
) -> list[Term]:
    """Terms, times scale, of what a device's layers take of `cells`; `ends`: what the first and the last stage add."""
    terms = [
        (column, scale * (cells[model.classes.kind(problem, number)][place][option] or 0.0))
        for (number, place, option), column in model.counts.items()
        if place == device
    ]
    first, last = ends
    return terms + model.placed(0, device, scale * first) + model.placed(problem.num_layers - 1, device, scale * last)


def add_memory(problem: Problem, model: Model, shave: float = 0.0, excess: dict[int, int] | None = None) -> None:
    """Bytes of every device within its capacity, plus its column of `excess` where one is given.

    Sums are multiples of their greatest common divisor g, so the limit is the middle between the last that fits and the
    next: a rounding error of HiGHS cannot cross it unless g is tiny.
    """
    for device, capacity in enumerate(problem.capacity_bytes):
        ends = (problem.first_stage.bytes[device], problem.last_stage.bytes[device])
        sizes = [cell for kind in problem.layer_bytes for cell in kind[device] if cell] + [end for end in ends if end]
        divisor = math.gcd(*sizes) if sizes else 1
        limit = (capacity // divisor + 0.5) * divisor - shave * abs(capacity)
        scale = MEMORY_SCALE / max(abs(capacity), max(sizes, default=1), 1)
        terms = device_terms(problem, model, device, problem.layer_bytes, ends, scale)
        slack = [(excess[device], -scale * model.unit)] if excess is not None else []
        model.linear.row([*terms, *slack, (model.used[device], -limit * scale)], upper=0.0)
        if excess is None:
            add_reach(problem, model, device, problem.layer_bytes, max(0, capacity))


def add_reach(problem: Problem, model: Model, device: int, cells: Cells, limit: float) -> None:
    """Valid cuts: when layers a..b on the device exceed the limit, b there or earlier puts a on an earlier device."""
    least = [min((cell for cell in kind[device] if cell is not None), default=0.0) for kind in cells]
    start, held = 0, [least[kind] for kind in problem.layer_kind]
    for end in range(problem.num_layers):
        while start <= end and math.fsum(held[start : end + 1]) > limit:
            earlier = [(model.cumulative[start][device - 1], -1.0)] if device else []
            model.linear.row([(model.cumulative[end][device], 1.0), *earlier], upper=0.0)
            start += 1


def add_budget(problem: Problem, model: Model, shave: float = 0.0) -> None:
    """Sum of sensitivity within the budget, if there is one."""
    budget = problem.sensitivity_budget
    if budget is None:
        return
    weights = {cell: model.classes.sensitivity(problem, cell) for cell in model.counts}
    if min(weights.values(), default=0.0) >= 0.0:
        for cell, weight in weights.items():
            if weight > budget * (1.0 + 1e-9):
                model.linear.upper[model.counts[cell]] = 0.0
    scale = 1.0 / (abs(budget) or max(map(abs, weights.values()), default=0.0) or 1.0)
    upper = (budget - shave * abs(budget)) * scale
    model.linear.row([(column, weights[cell] * scale) for cell, column in model.counts.items()], upper=upper)


def latency_model(problem: Problem, rows: tuple[Row, ...], shave: float = 0.0) -> Model:
    """The whole problem: placement, memory, budget and seconds."""
    classes = classify(problem, rows, by_sensitivity=bool(problem.theta) or problem.sensitivity_budget is not None)
    units = (_unit(problem.prefill_s), _unit(problem.decode_s))
    stages = problem.num_layers + len(problem.devices)
    typical = units[0] * (stages + problem.prefill_micro_batches) + units[1] * stages * max(1, problem.gen_len - 1)
    model = placement_model(problem, classes, typical / OBJECTIVE_SCALE, shave)
    add_memory(problem, model, shave)
    add_budget(problem, model, shave)
    for cell, column in model.counts.items():
        model.linear.cost[column] = (problem.theta or 0.0) * classes.sensitivity(problem, cell) / model.unit
    return replace(model, slowest=_add_seconds(problem, model, units))


def _unit(cells: Cells) -> float:
    """Seconds of a typical layer, the unit of time of a phase."""
    known = [cell for kind in cells for device in kind for cell in device if cell]
    return math.fsum(known) / len(known) if known else 1.0


def _add_seconds(problem: Problem, model: Model, units: tuple[float, float]) -> tuple[Slowest, ...]:
    devices = range(len(problem.devices))
    arcs = _add_arcs(problem, model)
    back = _add_return(problem, model)
    rounds, micro_batches = problem.gen_len - 1, problem.decode_micro_batches
    links = [_link_terms(problem.link_prefill_s, arcs, {}, device) for device in devices]
    prefill = _Phase(problem.prefill_s, problem.first_stage.prefill_s, problem.last_stage.prefill_s, links, units[0])
    _, first = _add_phase(problem, model, prefill, 1.0, problem.prefill_micro_batches - 1.0)
    links = [_link_terms(problem.link_decode_s, arcs, back, device) for device in devices]
    decode = _Phase(problem.decode_s, problem.first_stage.decode_s, problem.last_stage.decode_s, links, units[1])
    if problem.decode_model == "llm_pq":
        _, slowest = _add_phase(problem, model, decode, 1.0, rounds * (micro_batches - 1.0))
    elif problem.decode_model == "per_token_flush":
        _, slowest = _add_phase(problem, model, decode, rounds, rounds * (micro_batches - 1.0))
    else:
        parts, slowest = _add_phase(problem, model, decode, 0.0, 0.0)
        trip = model.linear.column(cost=rounds * decode.unit / model.unit)
        model.linear.row([*((part, 1.0) for part in parts), (trip, -1.0)], upper=0.0)
        model.linear.row([(slowest, float(micro_batches)), (trip, -1.0)], upper=0.0)
    return Slowest(first, prefill.cells, prefill.unit), Slowest(slowest, decode.cells, decode.unit)


@dataclass(frozen=True, slots=True)
class _Phase:
    """Seconds of prefill or decode: cells, ends, link terms by device, and the unit of its columns."""

    cells: Cells
    first: tuple[float, ...]
    last: tuple[float, ...]
    links: list[list[Term]]
    unit: float


def _add_phase(problem: Problem, model: Model, phase: _Phase, sum_cost: float, max_cost: float) -> tuple[list[int], int]:
    """Columns of compute and link seconds of every device and of the slowest, at these costs per second."""
    linear, parts = model.linear, []
    slowest = linear.column(cost=max_cost * phase.unit / model.unit)
    for device in range(len(problem.devices)):
        compute, link = (linear.column(cost=sum_cost * phase.unit / model.unit) for _ in range(2))
        ends = (phase.first[device], phase.last[device])
        terms = device_terms(problem, model, device, phase.cells, ends, 1.0 / phase.unit)
        linear.row([*terms, (compute, -1.0)], 0.0, 0.0)
        linear.row([*((column, c / phase.unit) for column, c in phase.links[device]), (link, -1.0)], 0.0, 0.0)
        bounded = [[compute], [link]] if problem.overlap else [[compute, link]]
        for group in bounded:
            linear.row([*((column, 1.0) for column in group), (slowest, -1.0)], upper=0.0)
        parts += [compute, link]
    return parts, slowest


def _link_terms(seconds: Matrix, arcs: dict[tuple[int, int], int], back: dict[tuple[int, int], int], device: int) -> list[Term]:
    both = [*arcs.items(), *back.items()]
    return [(column, seconds[start][end]) for (start, end), column in both if start == device]


def _add_arcs(problem: Problem, model: Model) -> dict[tuple[int, int], int]:
    """arc[a, b] = 1 when b is the used device next after a: a path through every used device, integral by itself."""
    linear, last = model.linear, problem.num_layers - 1
    arcs = {pair: linear.column(1.0) for pair in combinations(range(len(problem.devices)), 2)}
    for device, used in enumerate(model.used):
        out = [(column, 1.0) for (start, _), column in arcs.items() if start == device]
        into = [(column, 1.0) for (_, end), column in arcs.items() if end == device]
        linear.row([*out, *model.placed(last, device), (used, -1.0)], 0.0, 0.0)
        linear.row([*into, *model.placed(0, device), (used, -1.0)], 0.0, 0.0)
    return arcs


def _add_return(problem: Problem, model: Model) -> dict[tuple[int, int], int]:
    """back[b, a] = 1 when b holds the last layer and a the first."""
    devices = range(len(problem.devices))
    back = {(b, a): model.linear.column(1.0) for a in devices for b in devices if b >= a}
    for device in devices:
        _match(model, (column for (b, _), column in back.items() if b == device), problem.num_layers - 1, device)
        _match(model, (column for (_, a), column in back.items() if a == device), 0, device)
    return back


def _match(model: Model, columns: Iterable[int], layer: int, device: int) -> None:
    model.linear.row([*((column, 1.0) for column in columns), *model.placed(layer, device, -1.0)], 0.0, 0.0)
