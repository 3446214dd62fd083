"""Search: guesses of the optimum, each refuted, which raises the bound, or met by an assignment that is proven."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from llmpq.solver.exact.boxes import BoxSearch
from llmpq.solver.exact.figures import Figures
from llmpq.solver.exact.graph import Graph
from llmpq.solver.exact.grid import Caps, Grid
from llmpq.solver.exact.kernels import FAR, Kernels
from llmpq.solver.exact.stages import Chains, Stages
from llmpq.solver.problem import Assignment, Problem, evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

GROWTHS = (0.002, 0.006, 0.015, 0.03, 0.06, 0.1, 0.3, 1.0)  # of the bound: guesses of the optimum, the last one repeated
SMALLEST = 1e-4  # of the largest objective there can be: least size that growths are relative to
DOUBT = 0.1  # growth from which on it is asked first whether anything keeps the budget
SHRINK = 0.25  # of a guess that needs more stages than can be held
LEAST_GROWTH = 1e-5
STEPS = (400, 200)  # of ascent at the start and at every guess
OTHER_STARTS = 1.1  # of the least bound: how far those of other first devices are pursued at the start
MOST = (3_000_000, 20_000_000)  # stages and labels held at once
SLACK_SHARE = 0.5  # of the gap, for paths that count as one
OWN_SHARE = 0.85  # of the gap asked for; the rest is for rounding


@dataclass(slots=True)
class Start:
    """One choice of the first used device: its multipliers and what is proven of it."""

    first: int
    multipliers: "Floats"
    bound: float


@dataclass(slots=True)
class Effort:
    """What a run took: guesses, stages listed, boxes visited, paths made."""

    guesses: int = 0
    stages: int = 0
    boxes: int = 0
    paths: int = 0


@dataclass(slots=True)
class Search:
    """One run: `best` and `assignment` are the incumbent, `bound` is proven; `stuck`: too many stages to go on.

    gap: relative, to be closed; deadline: of perf_counter; ceiling: only assignments below it are of interest.
    """

    figures: Figures
    kernels: Kernels
    gap: float
    deadline: float = np.inf
    ceiling: float = np.inf
    guess: float = np.inf
    best: float = np.inf
    bound: float = -np.inf
    assignment: Assignment | None = None
    stuck: bool = False
    doubted: bool = False
    effort: Effort = field(default_factory=Effort)

    def run(self) -> None:
        """Ends with the bound at the cutoff, above everything possible if nothing is feasible; or at the deadline, or stuck."""
        starts = self._starts()
        self.bound = min((start.bound for start in starts), default=np.inf)
        largest = _largest(self.figures)
        growths = _growths()
        growth = next(growths)
        while self.bound < min(self.cutoff(), largest) and not self.expired():
            if growth >= DOUBT and self._budget_out_of_reach():
                self.bound = np.inf
                return
            self.guess = self.bound + growth * max(abs(self.bound), SMALLEST * largest)
            explored = [self._explored(start) for start in sorted(starts, key=lambda start: start.bound)]
            self.bound = min(start.bound for start in starts)
            self.guess = np.inf
            growth = next(growths) if all(explored) else growth * SHRINK
            if growth < LEAST_GROWTH:
                self.stuck = True
                return

    @property
    def infeasible(self) -> bool:
        """Whether it is proven that no assignment exists."""
        return self.assignment is None and self.bound >= _largest(self.figures)

    def cutoff(self) -> float:
        """What an assignment has to be below to matter."""
        wanted = self.best - OWN_SHARE * self.gap * abs(self.best) if np.isfinite(self.best) else np.inf
        return min(self.guess, wanted, self.ceiling)

    def expired(self) -> bool:
        return perf_counter() > self.deadline

    def _budget_out_of_reach(self) -> bool:
        """Whether the least sensitivity that fits exceeds the budget: a search without seconds; asked once."""
        budget = self.figures.budget
        if self.doubted or self.assignment is not None or not np.isfinite(budget):
            return False
        self.doubted = True
        timeless = Figures(_without_seconds(self.figures.problem), self.figures.allowed)
        least = Search(timeless, self.kernels, self.gap, self.deadline, budget)
        least.run()
        return least.bound >= budget and least.best > budget

    def _starts(self) -> list[Start]:
        """Every first used device that any path begins with."""
        last = min(self.figures.problem.required_devices, default=self.figures.shape[0] - 1)
        starts: list[Start] = []
        for first in range(last + 1):
            grid = Grid.of(self.figures, first, Caps())
            multipliers = starts[0].multipliers if starts else grid.start_multipliers(self.kernels)
            least = min((start.bound for start in starts), default=np.inf)
            target = least + (OTHER_STARTS - 1.0) * abs(least) if starts else self.ceiling
            bound, multipliers = self.kernels.ascend_grid(grid, multipliers, grid.scale(), STEPS[0], target)
            if bound < FAR:
                starts.append(Start(first, multipliers, bound))
        return starts

    def _explored(self, start: Start) -> bool:
        """Raises the bound of a start to the cutoff, unless time runs out; False when there are too many stages or paths."""
        if start.bound >= self.cutoff() or self.expired():
            return True
        grid = Grid.of(self.figures, start.first, Caps())
        self.effort.guesses += 1
        for _ in range(2):
            grid = grid.capped(self.kernels, start.multipliers, self.cutoff())
            arguments = (start.multipliers, grid.scale(), STEPS[1], self.cutoff())
            bound, start.multipliers = self.kernels.ascend_grid(grid, *arguments)
            if bound >= self.cutoff():
                start.bound = self.cutoff()
                return True
        listed = self.kernels.list_stages(grid, start.multipliers, self.cutoff(), hashes(self.figures), MOST)
        if listed is None:
            return False
        start.bound = max(start.bound, self._search_boxes(Graph.of(grid, listed[0]), listed[1], start.multipliers, start.bound))
        return start.bound >= self.cutoff() or self.expired()

    def _search_boxes(self, graph: Graph, chains: Chains, multipliers: "Floats", bound: float) -> float:
        def found(stages: Stages, path: list[int]) -> None:
            self._offer(_assignment(self.figures, stages, chains, path))

        boxes = BoxSearch(self.kernels, self.cutoff, found, self.expired, SLACK_SHARE * self.gap * abs(self.cutoff()))
        devices = self.figures.shape[0]
        bound = boxes.run(graph, np.concatenate((multipliers[: 2 * devices], multipliers[-1:])), bound)
        self.effort.stages += len(graph.stages)
        self.effort.boxes += boxes.visited
        self.effort.paths += boxes.paths
        return bound

    def _offer(self, assignment: Assignment) -> None:
        evaluation = evaluate(self.figures.problem, assignment)
        assert not evaluation.violations, evaluation.violations
        if evaluation.objective < self.best:
            self.best, self.assignment = evaluation.objective, assignment


def _growths() -> Iterator[float]:
    yield from GROWTHS
    while True:
        yield GROWTHS[-1]


def _assignment(figures: Figures, stages: Stages, chains: Chains, path: list[int]) -> Assignment:
    layers = figures.shape[1]
    device, option = [0] * layers, [0] * layers
    for item in path:
        place, begin = divmod(int(stages.start[item]), layers + 1)
        chosen = chains.options(int(stages.chain[item]))
        device[begin : begin + len(chosen)] = [place] * len(chosen)
        option[begin : begin + len(chosen)] = chosen
    return Assignment(tuple(device), tuple(option))


def _largest(figures: Figures) -> float:
    """More than any objective: every layer and end at its slowest, the whole of it in one stage, on every link."""

    def total(cells: "Floats", ends: "Floats", links: "Floats") -> float:
        layers = cells.max(axis=(1, 2))[figures.kind].sum()
        return float(layers + ends.max(axis=1).sum() + links.max(axis=1).sum())

    prefill = total(figures.prefill, figures.ends[[0, 3]], figures.link_prefill)
    decode = total(figures.decode, figures.ends[[1, 4]], figures.link_decode)
    sensitivity = float(figures.sensitivity.max(axis=1).sum())
    weight = figures.decode_sum + figures.round_trip + figures.decode_slowest
    return 1.0 + (1.0 + figures.prefill_slowest) * prefill + weight * decode + figures.theta * abs(sensitivity)


def _without_seconds(problem: Problem) -> Problem:
    """The problem of least sensitivity."""
    devices = len(problem.devices)
    none = (0.0,) * devices
    cells = tuple(tuple(tuple(None if cell is None else 0.0 for cell in row) for row in kind) for kind in problem.layer_bytes)
    return replace(
        problem,
        prefill_s=cells,
        decode_s=cells,
        link_prefill_s=(none,) * devices,
        link_decode_s=(none,) * devices,
        first_stage=replace(problem.first_stage, prefill_s=none, decode_s=none),
        last_stage=replace(problem.last_stage, prefill_s=none, decode_s=none),
        sensitivity_budget=None,
        theta=1.0,
    )


def hashes(figures: Figures) -> "NDArray[np.uint64]":
    """[kind, option] random words: their sum tells counts of options apart; a clash costs time, not exactness."""
    shape = (figures.problem.num_kinds, figures.shape[2])
    return np.random.default_rng(0).integers(1, 2**63, shape, dtype=np.uint64)
