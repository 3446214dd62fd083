"""Bottleneck bound: how fast the slowest stage of a serving pipeline can be, with whole layers, whatever the order of devices."""

from dataclasses import dataclass
from itertools import pairwise
from math import comb, inf
from typing import TYPE_CHECKING

from llmpq.planning.order_free import Surroundings
from llmpq.solver.problem import RELATIVE_TOLERANCE, Cells, Problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_MIXES = 300_000  # numbers of layers at each option that one device may hold; above it there is no bound
GROWTH = 1.25  # of the bound, while nothing is known of what is possible
STEPS = 8  # of bisection between the bound that is known and what is wanted
FIRST, LAST = 1, 2


@dataclass(frozen=True, slots=True)
class _Stage:
    """What one device may hold in one role: for every number of layers, seconds ascending and the least loss up to each."""

    role: int
    seconds: "tuple[Floats, ...]"
    loss: "tuple[Floats, ...]"

    def least_loss(self, layers: int, slowest: float) -> float:
        """The least loss with that many layers in a stage of at most so many seconds; inf when there is none."""
        found = int(self.seconds[layers].searchsorted(slowest, side="right"))
        return float(self.loss[layers][found - 1]) if found else inf


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """Each device in each of its roles, and how many of them are used. Layers are as small, fast and robust as the best of them.

    As many batches are in flight as devices are used, so a trip takes that many times the slowest stage: the sum is never more.
    """

    devices: tuple[tuple[_Stage, ...], ...]
    in_use: int
    num_layers: int
    budget: float

    def bound(self, low: float, high: float) -> float:
        """The least objective, if it lies between `low` (a bound above 0) and `high`; at most `high`, which may be inf."""
        if not self.is_possible(high):
            return high
        while high == inf and not self.is_possible(low * GROWTH):
            low *= GROWTH
        high = min(high, low * GROWTH)
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.is_possible(middle) else (middle, high)
        return low

    def is_possible(self, objective: float) -> bool:
        """Whether whole layers on some devices, one of them first and another last, keep the budget at that objective."""
        import numpy as np

        slowest = objective / self.in_use * (1.0 + RELATIVE_TOLERANCE)
        least = np.full((4, self.in_use + 1, self.num_layers + 1), np.inf)  # [roles taken, devices, layers]
        least[0, 0, 0] = 0.0
        for stages in self.devices:
            before = least.copy()
            for stage in stages:
                for layers in range(1, len(stage.seconds)):
                    loss = stage.least_loss(layers, slowest)
                    for taken in range(4) if loss < inf else ():
                        if not taken & stage.role:
                            target = least[taken | stage.role, 1:, layers:]
                            np.minimum(target, before[taken, :-1, : self.num_layers + 1 - layers] + loss, out=target)
        found = float(least[FIRST | LAST, self.in_use, self.num_layers])
        return found < inf and found <= self.budget


def bottleneck(problem: Problem, around: Surroundings, in_use: int, high: float) -> Bottleneck | None:
    """The relaxation of a serving problem with `in_use` (two or more) devices and batches; `high`: only objectives up to it.

    None where it is too large. The problem has no theta and nothing to prefill; its own links are not read.
    """
    numbers = range(len(problem.devices))
    mixes = [_mixes(problem, j, high / in_use) for j in numbers]
    if any(found is None for found in mixes):
        return None
    budget = inf if problem.sensitivity_budget is None else problem.sensitivity_budget
    found = tuple(
        tuple(_stage(problem, around, j, role, counts) for role in (0, FIRST, LAST))
        for j, counts in enumerate(mixes)
        if counts is not None
    )
    return Bottleneck(found, in_use, problem.num_layers, budget + RELATIVE_TOLERANCE * max(abs(budget), RELATIVE_TOLERANCE))


def _least(cells: Cells, device: int) -> "Floats":
    """[option] of the kind that takes least; inf where none supports it."""
    import numpy as np

    found = np.array([[inf if cell is None else cell for cell in kind[device]] for kind in cells], dtype=np.float64)
    least: Floats = found.min(axis=0)
    return least


def _mixes(problem: Problem, device: int, slowest: float) -> "NDArray[np.int64] | None":
    """[mix, option] numbers of layers that can fit on the device in time at all; None when they are too many."""
    import numpy as np

    seconds, size = _least(problem.decode_s, device), _least(problem.layer_bytes, device)
    usable = [option for option in range(len(problem.options)) if seconds[option] < inf]
    if not usable:
        return np.zeros((0, len(problem.options)), dtype=np.int64)
    most = min(
        [problem.num_layers, problem.capacity_bytes[device] / min(size[usable]), slowest / max(min(seconds[usable]), 1e-300)]
    )
    if most < 1:
        return np.zeros((0, len(problem.options)), dtype=np.int64)
    limit = int(most * (1.0 + RELATIVE_TOLERANCE))
    if comb(limit + len(usable), len(usable)) > MOST_MIXES:
        return None
    grid = np.zeros((1, len(problem.options)), dtype=np.int64)
    for option in usable:
        left = limit - grid.sum(axis=1)
        times = left + 1
        grid = np.repeat(grid, times, axis=0)
        grid[:, option] = np.arange(len(grid)) - np.repeat(np.cumsum(times) - times, times)
    return grid


def _stage(problem: Problem, around: Surroundings, device: int, role: int, counts: "NDArray[np.int64]") -> _Stage:
    import numpy as np

    usable = _least(problem.decode_s, device) < inf
    seconds, size = (np.where(usable, _least(cells, device), 0.0) for cells in (problem.decode_s, problem.layer_bytes))
    loss = np.array(problem.sensitivity, dtype=np.float64).min(axis=0)
    ends = [end for end, held in ((problem.first_stage, FIRST), (problem.last_stage, LAST)) if role & held]
    links = around.return_s if role & LAST else around.decode_s
    hop = min((links[device][other] for other in range(len(problem.devices)) if other != device), default=0.0)
    taken = counts @ seconds + sum(end.decode_s[device] for end in ends) + hop
    room = problem.capacity_bytes[device] - sum(end.bytes[device] for end in ends)
    kept = counts @ size <= room
    layers, taken, lost = counts.sum(axis=1)[kept], taken[kept], (counts @ loss)[kept]
    order = np.lexsort((taken, layers))
    layers, taken, lost = layers[order], taken[order], lost[order]
    starts = layers.searchsorted(np.arange((int(layers[-1]) if len(layers) else 0) + 2))
    parts = [slice(a, b) for a, b in pairwise(starts)]
    times = tuple(np.asarray(taken[part], np.float64) for part in parts)
    return _Stage(role, times, tuple(_running_least(lost[part]) for part in parts))


def _running_least(values: "Floats") -> "Floats":
    import numpy as np

    least: Floats = np.minimum.accumulate(values)
    return least
