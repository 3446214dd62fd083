"""Twin of the grid kernels: the Lagrangian bound by layers, and its ascent, in plain Python."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpq.solver.exact.kernels import FAR, METRIC_FLOOR, PATIENCE, STEP

if TYPE_CHECKING:
    from llmpq.solver.exact.grid import Grid

Table = list[list[float]]
Oracle = Callable[[list[float]], tuple[float, list[float]]]


@dataclass(slots=True)
class Plain:
    """A grid as lists: cells [kind][device][option], the rest as in figures.py."""

    devices: int
    layers: int
    options: int
    overlap: bool
    first: int
    last: int
    kind: list[int]
    reach: list[list[int]]
    prefill: list[Table]
    decode: list[Table]
    bytes: list[Table]
    sensitivity: Table
    capacity: list[float]
    link_prefill: Table
    link_decode: Table
    ends: Table
    allowed: list[list[list[int]]]
    arcs: list[list[int]]
    prefill_slowest: float
    decode_sum: float
    decode_slowest: float
    round_trip: float
    micro_batches: float
    theta: float
    budget: float
    caps: tuple[float, float]

    @staticmethod
    def of(grid: "Grid") -> "Plain":
        figures = grid.figures
        devices, layers, options = figures.shape
        names = ("prefill", "decode", "bytes", "sensitivity", "capacity", "link_prefill", "link_decode", "ends", "allowed")
        numbers = ("prefill_slowest", "decode_sum", "decode_slowest", "round_trip", "micro_batches", "theta", "budget")
        values: list[Any] = [devices, layers, options, figures.problem.overlap, grid.first, grid.last]
        values += [figures.kind.tolist(), grid.reach.tolist(), *(getattr(figures, name).tolist() for name in names)]
        values += [grid.arcs.tolist(), *(min(float(getattr(figures, name)), FAR) for name in numbers)]
        values.append((min(grid.caps.prefill, FAR), min(grid.caps.decode, FAR)))
        return Plain(*values)

    def share(self, multipliers: list[float]) -> float:
        """Of the sums in the round trip, as the multipliers of decode leave it."""
        slow = 0.0
        for value in multipliers[self.devices : 2 * self.devices]:
            slow += value
        if self.round_trip <= 0.0 or self.decode_slowest <= 0.0:
            return 1.0
        return max(1.0 - slow / self.decode_slowest, 0.0)


@dataclass(slots=True)
class Terms:
    """Weighted costs, and least costs [device][boundary] as in kernels.c."""

    weight: list[Table]
    extra: Table
    arc: Table
    start: list[float]
    end: list[float]
    constant: float
    backward: Table
    open: Table
    closing: Table
    forward: Table
    best: list[list[int]] = field(default_factory=list)
    prefix: Table = field(default_factory=list)
    next: list[list[int]] = field(default_factory=list)
    until: list[list[int]] = field(default_factory=list)


def terms_of(plain: Plain, at: list[float], share: float) -> Terms:
    """The weighted costs at these multipliers; tables are empty."""
    n, total = plain.devices, plain.decode_sum + plain.round_trip * share
    slow_prefill, slow_decode, memory, price = at[:n], at[n : 2 * n], at[2 * n : 3 * n], at[3 * n]
    weight = [
        [
            [
                p * (1.0 + slow_prefill[j]) + d * (total + slow_decode[j]) + m * memory[j]
                for p, d, m in zip(plain.prefill[k][j], plain.decode[k][j], plain.bytes[k][j])
            ]
            for j in range(n)
        ]
        for k in range(len(plain.prefill))
    ]
    extra = [[(plain.theta + price) * s for s in row] for row in plain.sensitivity]
    arc, start, end, e = [], [], [], plain.ends
    for j in range(n):
        p, d = 1.0 + slow_prefill[j], total + slow_decode[j]
        lp, ld = (1.0, total) if plain.overlap else (p, d)
        links = zip(plain.arcs[j], plain.link_prefill[j], plain.link_decode[j])
        arc.append([a * lp + b * ld if there else FAR for there, a, b in links])
        start.append(p * e[0][j] + d * e[1][j] + memory[j] * e[2][j] if j == plain.first else FAR)
        stop = p * e[3][j] + d * e[4][j] + memory[j] * e[5][j] + ld * plain.link_decode[j][plain.first]
        end.append(FAR if j < plain.last else stop)
    constant = -price * plain.budget if price > 0.0 else 0.0
    tables = (_table(plain), _table(plain), _table(plain), _table(plain))
    return Terms(weight, extra, arc, start, end, constant, *tables)


def _table(plain: Plain) -> Table:
    return [[FAR] * (plain.layers + 1) for _ in range(plain.devices)]


def set_cells(plain: Plain, terms: Terms) -> None:
    """The cheapest option of every layer on every device, and their sums."""
    for j in range(plain.devices):
        best, prefix = [], [0.0]
        for i, kind in enumerate(plain.kind):
            least, at = FAR, 0
            for b, there in enumerate(plain.allowed[i][j]):
                if there and terms.weight[kind][j][b] + terms.extra[i][b] < least:
                    least, at = terms.weight[kind][j][b] + terms.extra[i][b], b
            best.append(at)
            prefix.append(prefix[-1] + (least if least < FAR else 0.0))
        terms.best.append(best)
        terms.prefix.append(prefix)


def sweep_back(plain: Plain, terms: Terms, memory: list[float]) -> float:
    """Shortest path to the end by sliding minima over the ends of a stage; FAR when there is none."""
    layers = plain.layers
    terms.next, terms.until = ([[-1] * (layers + 1) for _ in range(plain.devices)] for _ in range(2))
    for j in range(plain.devices - 1, -1, -1):
        prefix, use, sums = terms.prefix[j], -memory[j] * plain.capacity[j], []
        for e in range(layers + 1):
            least, to = (terms.end[j] if e == layers else FAR), -1
            for k in range(j + 1, plain.devices if e < layers else 0):
                value = terms.arc[j][k] + terms.backward[k][e]
                if value < least:
                    least, to = value, k
            terms.closing[j][e], terms.next[j][e] = least, to
            sums.append(prefix[e] + least)
        queue: deque[int] = deque()
        for a in range(layers - 1, -1, -1):
            while queue and sums[queue[-1]] >= sums[a + 1]:
                queue.pop()
            queue.append(a + 1)
            while queue and queue[0] > plain.reach[j][a]:
                queue.popleft()
            if queue and sums[queue[0]] < FAR:
                terms.until[j][a] = queue[0]
                terms.open[j][a + 1] = sums[queue[0]] - prefix[a + 1]
                terms.backward[j][a] = use + (sums[queue[0]] - prefix[a])
    before = terms.backward[plain.first][0]
    return FAR if before >= FAR else terms.start[plain.first] + before


def sweep_on(plain: Plain, terms: Terms, memory: list[float]) -> None:
    """Shortest path from the start."""
    layers, closed = plain.layers, [[FAR] * (plain.layers + 1) for _ in range(plain.devices)]
    for j in range(plain.devices):
        prefix, use, forward = terms.prefix[j], -memory[j] * plain.capacity[j], terms.forward[j]
        forward[0] = terms.start[j]
        for i in range(j):
            for a in range(1, layers):
                forward[a] = min(forward[a], closed[i][a] + terms.arc[i][j])
        sums = [value - prefix[a] if value < FAR else FAR for a, value in enumerate(forward)]
        queue: deque[int] = deque()
        for e in range(1, layers + 1):
            while queue and sums[queue[-1]] >= sums[e - 1]:
                queue.pop()
            queue.append(e - 1)
            while queue and plain.reach[j][queue[0]] < e:
                queue.popleft()
            if queue and sums[queue[0]] < FAR:
                closed[j][e] = sums[queue[0]] + use + prefix[e]


def grid_value(plain: Plain, at: list[float], share: float) -> tuple[float, Terms]:
    """The bound with its constant, and the tables of the way back."""
    terms = terms_of(plain, at, share)
    set_cells(plain, terms)
    value = sweep_back(plain, terms, at[2 * plain.devices : 3 * plain.devices])
    return (FAR if value >= FAR else value + terms.constant), terms


def grid_oracle(plain: Plain, at: list[float]) -> tuple[float, list[float]]:
    """The bound and its slope."""
    value, terms = grid_value(plain, at, plain.share(at))
    n, layers = plain.devices, plain.layers
    slope = [0.0] * (3 * n + 1)
    if value >= FAR:
        return FAR, slope
    device, option = _path(plain, terms)
    total, trip = 0.0, 0.0
    for i, (kind, j, b) in enumerate(zip(plain.kind, device, option)):
        if i == 0 or device[i - 1] != j:
            slope[2 * n + j] -= plain.capacity[j]
        slope[j] += plain.prefill[kind][j][b]
        slope[n + j] += plain.decode[kind][j][b]
        slope[2 * n + j] += plain.bytes[kind][j][b]
        total += plain.sensitivity[i][b]
    for x in range(3):
        slope[x * n + device[0]] += plain.ends[x][device[0]]
        slope[x * n + device[-1]] += plain.ends[3 + x][device[-1]]
    for j in range(n):
        trip += slope[n + j]
    for i, j in enumerate(device):
        last = i + 1 == layers
        k = device[0] if last else device[i + 1]
        if not last and j == k:
            continue
        trip += plain.link_decode[j][k]
        if not plain.overlap:
            slope[j] += 0.0 if last else plain.link_prefill[j][k]
            slope[n + j] += plain.link_decode[j][k]
    if plain.round_trip > 0.0:
        for j in range(n):
            slope[n + j] -= trip / plain.micro_batches
    slope[3 * n] = total - plain.budget if plain.budget < FAR else 0.0
    return value, slope


def _path(plain: Plain, terms: Terms) -> tuple[list[int], list[int]]:
    device: list[int] = []
    option: list[int] = []
    j = plain.first
    while j >= 0:
        begin, end = len(device), terms.until[j][len(device)]
        device += [j] * (end - begin)
        option += terms.best[j][begin:end]
        j = terms.next[j][end] if end < plain.layers else -1
    return device, option


def onto_simplex(values: list[float], total: float) -> list[float]:
    """The nearest point with entries >= 0 that add up to the total."""
    running, level = 0.0, 0.0
    for i, value in enumerate(sorted(values, reverse=True)):
        running += value
        mean = (running - total) / (i + 1)
        if value > mean:
            level = mean
    return [value - level if total > 0.0 and value > level else 0.0 for value in values]


def project(plain: Plain, at: list[float]) -> list[float]:
    """The nearest dual feasible multipliers."""
    n, slow = plain.devices, 0.0
    for value in at[n : 2 * n]:
        slow += max(value, 0.0)
    decode = at[n : 2 * n]
    if plain.round_trip <= 0.0 or slow > plain.decode_slowest:
        decode = onto_simplex(decode, plain.decode_slowest)
    result = onto_simplex(at[:n], plain.prefill_slowest) + [max(value, 0.0) for value in decode + at[2 * n :]]
    return [*result[:-1], 0.0] if plain.budget >= FAR else result


def ascend(
    plain: Plain, oracle: Oracle, kept: list[float], scale: list[float], steps: int, target: float
) -> tuple[float, "np.ndarray[tuple[int], np.dtype[np.float64]]"]:
    """Deflected subgradients in a metric of root mean squares, from the best point."""
    step, shortest, idle = STEP, STEP * 1e-3, 0
    direction, metric = [0.0] * len(kept), [0.01] * len(kept)
    best, slope = oracle(kept)
    for _ in range(steps):
        if best >= target or step < shortest:
            break
        gain, damped = 0.0, []
        for x, (value, size) in enumerate(zip(slope, scale)):
            s = value / size
            s = 0.0 if s < 0.0 and kept[x] <= 0.0 else s
            direction[x] = 0.9 * direction[x] + 0.1 * s
            metric[x] = 0.9 * metric[x] + 0.1 * s * s
            damped.append(direction[x] / (math.sqrt(metric[x]) + METRIC_FLOOR))
            gain += direction[x] * damped[x]
        if gain <= 1e-16:
            break
        length = max(min(step * abs(best), target - best), 1e-9 * abs(best))
        point = project(plain, [at + length / gain * move / size for at, move, size in zip(kept, damped, scale)])
        value, slope = oracle(point)
        idle = 0 if value > best + 0.02 * step * abs(best) else idle + 1
        if value > best:
            best, kept = value, point
        if idle > PATIENCE:
            step, idle = step * 0.5, 0
    return best, np.array(kept)
