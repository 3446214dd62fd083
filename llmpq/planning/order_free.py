"""Order-free relaxation: how many layers of each class each device takes at each option, whatever the order of devices."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from llmpq.solver.linear import Limits, LinearModel, Term, run_highs
from llmpq.solver.problem import Cells, Problem, Row

MEMORY_SCALE = 1000.0  # a capacity in the model, as in the solver's
OBJECTIVE_SCALE = 1000.0  # the objective in the model, roughly
SMALL = 400  # counts: up to there HiGHS takes tens to hundreds of milliseconds, with 2000 seconds

Matrix = tuple[tuple[float, ...], ...]
Cell = tuple[int, int, int]  # class, device, option
Arcs = dict[tuple[int, int], int]  # [from, to] column


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a problem does not say of its devices because it has an order.

    prefill_s, decode_s: [from][to] seconds of a forward link, whichever device comes first; return_s: of the tokens' way back
    twins: groups of interchangeable devices, members ascending; hosts: groups of devices on one host
    """

    prefill_s: Matrix
    decode_s: Matrix
    return_s: Matrix
    twins: tuple[tuple[int, ...], ...]
    hosts: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(
        forward: Problem, backward: Problem, twins: tuple[tuple[int, ...], ...], hosts: tuple[tuple[int, ...], ...]
    ) -> "Surroundings":
        """From the problem of the devices in one order and that of the same devices in the opposite order."""
        last = len(forward.devices) - 1
        pairs = [[(a, b) for b in range(last + 1)] for a in range(last + 1)]

        def links(name: str, ahead: bool) -> Matrix:
            here, opposite = (getattr(problem, name) for problem in (forward, backward))
            return tuple(tuple(here[a][b] if (a < b) == ahead else opposite[last - a][last - b] for a, b in row) for row in pairs)

        return Surroundings(
            links("link_prefill_s", True), links("link_decode_s", True), links("link_decode_s", False), twins, hosts
        )


@dataclass(frozen=True, slots=True)
class Shares:
    """An integral point: layers[device], counts of (class, device, option), first and last device."""

    layers: tuple[int, ...]
    counts: dict[Cell, int]
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound in seconds of every objective in every order; None: proven that there is none. `shares` attain it."""

    value: float | None
    shares: Shares | None = None


@dataclass(frozen=True, slots=True)
class OrderFree:
    """A linear model that contains every assignment in every order of the devices; `members`: layers of each class.

    Contiguity is dropped, and links between used devices may close cycles beside the path from first to last, so every
    order's objective is at least the optimum. Layers of a class are of one kind, of equal sensitivity, and alike to every rule.
    """

    linear: LinearModel
    unit: float
    members: tuple[tuple[int, ...], ...]
    counts: dict[Cell, int]
    used: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    @property
    def is_small(self) -> bool:
        """Whether whole numbers are worth asking for: few classes of layers, as without a measured sensitivity."""
        return len(self.counts) <= SMALL

    def relaxed(self, time_limit_s: float) -> Bound:
        """The bound of the linear relaxation; 0 when it is not solved in time."""
        outcome = run_highs(self.linear, Limits(time_limit_s=time_limit_s), relaxed=True)
        if outcome.status == "infeasible":
            return Bound(None)
        return Bound(outcome.bound * self.unit if outcome.status == "optimal" and outcome.bound is not None else 0.0)

    def integral(self, gap: float, time_limit_s: float, cutoff: float | None) -> Bound:
        """The bound with whole layers; None also when nothing is below the cutoff (seconds)."""
        limits = Limits(gap, time_limit_s, None if cutoff is None else cutoff / self.unit)
        outcome = run_highs(self.linear, limits)
        if outcome.status == "infeasible":
            return Bound(None)
        value = 0.0 if outcome.bound is None else outcome.bound * self.unit
        shares = None if outcome.values is None else self._shares(outcome.values)
        return Bound(value if cutoff is None else min(value, cutoff), shares)

    def _shares(self, values: tuple[float, ...]) -> Shares:
        counts = {cell: round(values[column]) for cell, column in self.counts.items()}
        layers = tuple(sum(count for (_, j, _), count in counts.items() if j == device) for device in range(len(self.used)))
        ends = [max(range(len(columns)), key=lambda j: values[columns[j]]) for columns in (self.first, self.last)]
        return Shares(layers, counts, *ends)


def order_free_model(problem: Problem, around: Surroundings, rows: tuple[Row, ...], in_use: int | None = None) -> OrderFree:
    """The model of a problem, whose own links are not read; `in_use`: exactly so many devices hold layers.

    Only round trips without overlap are modelled, which is all that the planner asks for.
    """
    assert problem.decode_model == "round_trip" and not problem.overlap
    model = _columns(problem, rows)
    _add_use(problem, model, around.twins)
    if in_use is not None:
        model.linear.row([(column, 1.0) for column in model.used], in_use, in_use)
    _add_memory(problem, model)
    _add_rows(problem, model, rows)
    _add_seconds(problem, model, around)
    return model


def _columns(problem: Problem, rows: tuple[Row, ...]) -> OrderFree:
    members = _classes(problem, rows)
    linear, devices = LinearModel(), range(len(problem.devices))
    counts = {
        (number, device, option): linear.column(float(len(layers)), True)
        for number, layers in enumerate(members)
        for device in devices
        for option in problem.supported(problem.layer_kind[layers[0]], device)
    }
    used, first, last = (tuple(linear.column(1.0, True) for _ in devices) for _ in range(3))
    model = OrderFree(linear, _unit(problem), members, counts, used, first, last)
    for (number, _, option), column in counts.items():
        linear.cost[column] = (problem.theta or 0.0) * problem.sensitivity[members[number][0]][option] / model.unit
    return model


def _classes(problem: Problem, rows: tuple[Row, ...]) -> tuple[tuple[int, ...], ...]:
    """Layers that differ in nothing that the model sees."""
    seen: list[list[tuple[int, int, int, float]]] = [[] for _ in problem.layer_kind]
    for number, row in enumerate(rows):
        for layer, device, option, coefficient in row.coefficients:
            seen[layer].append((number, device, option, coefficient))
    matters = bool(problem.theta) or problem.sensitivity_budget is not None
    signatures: dict[object, list[int]] = {}
    for layer, kind in enumerate(problem.layer_kind):
        key = (kind, problem.sensitivity[layer] if matters else (), tuple(seen[layer]))
        signatures.setdefault(key, []).append(layer)
    return tuple(map(tuple, signatures.values()))


def _unit(problem: Problem) -> float:
    """Seconds per unit of the objective: what the layers take at their fastest, over OBJECTIVE_SCALE."""
    seconds = (_fastest(problem.prefill_s), _fastest(problem.decode_s))
    weights = (1.0, problem.gen_len - 1.0)
    total = math.fsum(w * s[kind] for w, s in zip(weights, seconds) for kind in problem.layer_kind)
    return (total or 1.0) / OBJECTIVE_SCALE


def _fastest(cells: Cells) -> list[float]:
    return [min((cell for row in kind for cell in row if cell is not None), default=0.0) for kind in cells]


def _on(model: OrderFree, device: int) -> Iterable[tuple[Cell, int]]:
    return ((cell, column) for cell, column in model.counts.items() if cell[1] == device)


def _layers_on(model: OrderFree, device: int, scale: float = 1.0) -> list[Term]:
    return [(column, scale) for _, column in _on(model, device)]


def _add_use(problem: Problem, model: OrderFree, twins: tuple[tuple[int, ...], ...]) -> None:
    """Every layer somewhere; one first and one last device, both used; of twins the earlier has no fewer layers."""
    linear, devices = model.linear, range(len(problem.devices))
    for number, layers in enumerate(model.members):
        everywhere = [(column, 1.0) for cell, column in model.counts.items() if cell[0] == number]
        linear.row(everywhere, len(layers), len(layers))
    for ends in (model.first, model.last):
        linear.row([(column, 1.0) for column in ends], 1.0, 1.0)
    for device in problem.required_devices:
        linear.lower[model.used[device]] = 1.0
    for device in devices:
        used, first, last = model.used[device], model.first[device], model.last[device]
        linear.row([*_layers_on(model, device), (used, -float(problem.num_layers))], upper=0.0)
        linear.row([*_layers_on(model, device), (used, -1.0)], lower=0.0)
        linear.row([(first, 1.0), (used, -1.0)], upper=0.0)
        linear.row([(last, 1.0), (used, -1.0)], upper=0.0)
        for other in devices:
            if other != device:
                linear.row([(first, 1.0), (last, 1.0), (model.used[other], 1.0)], upper=2.0)
    for group in twins:
        for a, b in pairwise(group):
            linear.row([*_layers_on(model, a), *_layers_on(model, b, -1.0)], lower=0.0)


def _terms(problem: Problem, model: OrderFree, device: int, cells: Cells, ends: tuple[float, float], scale: float) -> list[Term]:
    """Terms, times scale, of what a device's layers take of `cells`, and of what the first and the last stage add."""
    kinds = [problem.layer_kind[layers[0]] for layers in model.members]
    terms = [(column, scale * (cells[kinds[c]][device][b] or 0.0)) for (c, _, b), column in _on(model, device)]
    return [*terms, (model.first[device], scale * ends[0]), (model.last[device], scale * ends[1])]


def _add_memory(problem: Problem, model: OrderFree) -> None:
    for device, capacity in enumerate(problem.capacity_bytes):
        scale = MEMORY_SCALE / max(abs(capacity), 1)
        ends = (problem.first_stage.bytes[device], problem.last_stage.bytes[device])
        terms = _terms(problem, model, device, problem.layer_bytes, ends, scale)
        model.linear.row([*terms, (model.used[device], -scale * capacity)], upper=0.0)


def _add_rows(problem: Problem, model: OrderFree, rows: tuple[Row, ...]) -> None:
    """The quality budget and the user's rules."""
    budget = problem.sensitivity_budget
    if budget is not None:
        weights = {cell: problem.sensitivity[model.members[cell[0]][0]][cell[2]] for cell in model.counts}
        scale = 1.0 / (abs(budget) or max(map(abs, weights.values()), default=0.0) or 1.0)
        model.linear.row([(model.counts[cell], scale * weight) for cell, weight in weights.items()], upper=scale * budget)
    number = {layers[0]: c for c, layers in enumerate(model.members)}
    for row in rows:
        cells = [((number[layer], device, option), c) for layer, device, option, c in row.coefficients if layer in number]
        scale = 1.0 / max((abs(c) for _, c in cells), default=1.0)
        lower = -math.inf if row.sense == "<=" else row.rhs * scale
        upper = math.inf if row.sense == ">=" else row.rhs * scale
        terms = [(model.counts[cell], c * scale) for cell, c in cells if cell in model.counts]
        model.linear.row(terms, lower, upper)


def _add_seconds(problem: Problem, model: OrderFree, around: Surroundings) -> None:
    linear, rounds = model.linear, problem.gen_len - 1
    ahead, back = _add_arcs(model, around.hosts), _add_return(model)
    ends = (problem.first_stage.prefill_s, problem.last_stage.prefill_s)
    stages, unit = _stages(problem, model, problem.prefill_s, ends, ((ahead, around.prefill_s),))
    slowest = linear.column(cost=(problem.prefill_micro_batches - 1) * unit / model.unit)
    for stage in stages:
        linear.cost[stage] = unit / model.unit
        linear.row([(stage, 1.0), (slowest, -1.0)], upper=0.0)
    ends = (problem.first_stage.decode_s, problem.last_stage.decode_s)
    stages, unit = _stages(problem, model, problem.decode_s, ends, ((ahead, around.decode_s), (back, around.return_s)))
    trip = linear.column(cost=rounds * unit / model.unit)
    linear.row([*((stage, 1.0) for stage in stages), (trip, -1.0)], upper=0.0)
    for stage in stages:
        linear.row([(stage, float(problem.decode_micro_batches)), (trip, -1.0)], upper=0.0)


def _add_arcs(model: OrderFree, hosts: tuple[tuple[int, ...], ...]) -> Arcs:
    """arc[a, b] = 1 when b is the used device next after a; hosts that are used are connected."""
    linear, devices = model.linear, range(len(model.used))
    arcs = {(a, b): linear.column(1.0) for a in devices for b in devices if a != b}
    for device in devices:
        used, first, last = model.used[device], model.first[device], model.last[device]
        out = [(column, 1.0) for (a, _), column in arcs.items() if a == device]
        into = [(column, 1.0) for (_, b), column in arcs.items() if b == device]
        linear.row([*out, (last, 1.0), (used, -1.0)], 0.0, 0.0)
        linear.row([*into, (first, 1.0), (used, -1.0)], 0.0, 0.0)
    home = {device: number for number, host in enumerate(hosts) for device in host}
    visited = [linear.column(1.0) for _ in hosts]
    for device in devices:
        linear.row([(visited[home[device]], 1.0), (model.used[device], -1.0)], lower=0.0)
    crossing = [(column, 1.0) for (a, b), column in arcs.items() if home[a] != home[b]]
    linear.row([*crossing, *((column, -1.0) for column in visited)], lower=-1.0)
    return arcs


def _add_return(model: OrderFree) -> Arcs:
    """back[b, a] = 1 when b is the last device and a the first, and they differ."""
    linear, devices = model.linear, range(len(model.used))
    back = {(b, a): linear.column(1.0) for a in devices for b in devices if a != b}
    for device in devices:
        sole = linear.column(1.0)
        for end, place in ((model.last[device], 0), (model.first[device], 1)):
            arcs = [(column, 1.0) for pair, column in back.items() if pair[place] == device]
            linear.row([*arcs, (sole, 1.0), (end, -1.0)], 0.0, 0.0)
    return back


def _stages(
    problem: Problem,
    model: OrderFree,
    cells: Cells,
    ends: tuple[tuple[float, ...], tuple[float, ...]],
    links: tuple[tuple[Arcs, Matrix], ...],
) -> tuple[list[int], float]:
    """Columns of each device's seconds, its outgoing link included, and their unit in seconds."""
    fastest = _fastest(cells)
    unit = math.fsum(fastest[kind] for kind in problem.layer_kind) / problem.num_layers or 1.0
    stages = []
    for device, (first, last) in enumerate(zip(*ends)):
        terms = _terms(problem, model, device, cells, (first, last), 1.0 / unit)
        for arcs, seconds in links:
            terms += [(column, seconds[a][b] / unit) for (a, b), column in arcs.items() if a == device]
        stage = model.linear.column()
        model.linear.row([*terms, (stage, -1.0)], 0.0, 0.0)
        stages.append(stage)
    return stages, unit
