"""Robustness: regret of plans over sampled device speeds, and the near-optimal plan that has the least."""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, exp, log

from llmpq.costs import CostTable, PhaseCosts
from llmpq.errors import InputError
from llmpq.plan import Plan
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.fallback import Answer
from llmpq.planning.option_sets import sets_with
from llmpq.planning.search import Found, search
from llmpq.program import Program
from llmpq.solver.problem import Assignment, evaluate

GAP = 5e-3  # relative, to which the best plan of a sample is searched
SAMPLE_LIMIT_S = 5.0  # of one sample, rarely needed; the best plan known by then is what regret is measured against

Choice = tuple[Candidate, Assignment]
Speeds = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Regret:
    """Objective relative to the best plan known of each sample, less 1: over `samples` sets of device speeds.

    Each device is faster or slower than predicted by up to `factor`, log-uniformly.
    """

    factor: float
    samples: int
    seed: int
    median: float
    percentile_95: float
    worst: float


@dataclass(frozen=True, slots=True)
class Robustness:
    """Costs of some plans at the speeds predicted (first) and at each sample's: `choices` by plan, `seconds[plan][sample]`."""

    factor: float
    seed: int
    choices: tuple[Choice, ...]
    nominal: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]

    def regret(self, number: int) -> Regret:
        """Of the plan of that number."""
        best = [min(column) for column in zip(*self.seconds)]
        found = sorted(max(0.0, value / least - 1.0) for value, least in zip(self.seconds[number], best))
        median, high = (found[ceil(share * len(found)) - 1] for share in (0.5, 0.95))
        return Regret(self.factor, len(found), self.seed, median, high, found[-1])

    def least_regret(self, slack: float) -> int:
        """The plan of least 95 % regret among those within `slack` (relative) of the first at the speeds predicted."""
        near = (n for n, value in enumerate(self.nominal) if value <= self.nominal[0] * (1.0 + slack))
        return min(near, key=lambda n: (self.regret(n).percentile_95, self.regret(n).worst, self.nominal[n]))


def robustness(program: Program, first: Choice, budget: float | None, factor: float, samples: int, seed: int) -> Robustness:
    """The first plan beside the best plans of sampled speeds, all of them costed at all speeds. Deterministic but for time.

    Raises InputError when the factor is below 1 or there is no sample.
    """
    if not 1.0 <= factor < 100.0 or samples < 1:
        raise InputError(f"robustness: factor is {factor:g}, samples {samples}; expected a factor of at least 1 and a sample")
    scenarios = [scaled(program, speeds) for speeds in sampled_speeds(program, factor, samples, seed)]
    choices: dict[Choice, None] = {first: None}
    for scenario in scenarios:
        starts = [(candidate, build_problem(scenario, candidate, budget), assignment) for candidate, assignment in choices]
        gap, deadline = max(GAP, program.request.gap), time.monotonic() + SAMPLE_LIMIT_S
        found = search(scenario, budget, starts=starts, gap=gap, deadline=deadline)
        if found is not None:
            choices[found.candidate, found.assignment] = None
    pool = tuple(choices)
    return Robustness(
        factor=factor,
        seed=seed,
        choices=pool,
        nominal=tuple(_seconds(program, choice) for choice in pool),
        seconds=tuple(tuple(_seconds(scenario, choice) for scenario in scenarios) for choice in pool),
    )


def sampled_speeds(program: Program, factor: float, samples: int, seed: int) -> Iterable[Speeds]:
    """A speed for each device of the cluster, relative to what is predicted."""
    rng, reach = random.Random(seed), log(factor)
    devices = range(len(program.request.cluster.devices))
    return [tuple(exp(rng.uniform(-reach, reach)) for _ in devices) for _ in range(samples)]


def scaled(program: Program, speeds: Speeds) -> Program:
    """The program on devices that are so much faster than predicted; links and memory are as they were."""
    costs: CostTable = program.require("costs")

    def phase(entry: PhaseCosts) -> PhaseCosts:
        layer_s = tuple(
            tuple(tuple(None if cell is None else cell / speed for cell in row) for row, speed in zip(kind, speeds))
            for kind in entry.layer_s
        )
        first_s, last_s = (tuple(value / speed for value, speed in zip(end, speeds)) for end in (entry.first_s, entry.last_s))
        return replace(entry, layer_s=layer_s, first_s=first_s, last_s=last_s)

    slower = replace(costs, prefill=tuple(map(phase, costs.prefill)), decode=tuple(map(phase, costs.decode)))
    return replace(program, costs=slower)


def _seconds(program: Program, choice: Choice) -> float:
    candidate, assignment = choice
    return evaluate(build_problem(program, candidate, None), assignment).objective


def choice_of(program: Program, plan: Plan) -> Choice:
    """The candidate and the assignment that a plan was made from; devices that it leaves idle are not in the candidate.

    Its options are the most among which the plan fits into memory.
    """
    names = [device.name for device in program.request.cluster.devices]
    options = program.require("costs").options
    load, pipeline = plan.prediction.load, plan.pipeline
    prefill, flight = (pipeline.prefill_micro_batch, None) if load is None else (load.token_budget, len(plan.stages))
    order = tuple(names.index(stage.device) for stage in plan.stages)
    place = tuple(j for j, stage in enumerate(plan.stages) for _ in stage.options)
    assignment = Assignment(place, tuple(options.index(option) for option in plan.options))
    sizes = prefill, pipeline.decode_micro_batch
    among = sets_with(program, *sizes, set(assignment.option))
    candidates = [Candidate(order, *sizes, flight, pipeline.resident, chosen) for chosen in among]
    return next((c for c in candidates if _fits(program, c, assignment)), candidates[-1]), assignment


def _fits(program: Program, candidate: Candidate, assignment: Assignment) -> bool:
    problem = build_problem(program, candidate, None)
    held = evaluate(problem, assignment).bytes
    return all(nbytes <= capacity for nbytes, capacity in zip(held, problem.capacity_bytes))


def least_regret(program: Program, answer: Answer, factor: float, slack: float, samples: int, seed: int) -> Answer:
    """The answer, or a plan nearly as fast whose regret is less; the notice says what was given up for what."""
    best = answer.found
    found = robustness(program, (best.candidate, best.assignment), answer.budget, factor, samples, seed)
    number = found.least_regret(slack)
    candidate, assignment = found.choices[number]
    before, after = found.regret(0), found.regret(number)
    lost = found.nominal[number] / found.nominal[0] - 1.0
    said = (
        f"of {len(found.choices)} plans the one of least regret at speeds off by up to {factor:g}: "
        f"95 % {after.percentile_95:.2%} instead of {before.percentile_95:.2%}, for {lost:.2%} more seconds as predicted"
    )
    problem = build_problem(program, candidate, answer.budget)
    objective = found.nominal[number]
    proven = best.proven and objective - best.bound <= program.request.gap * objective
    chosen = Found(candidate, problem, assignment, objective, min(best.bound, objective), proven)
    return Answer(chosen, answer.budget, (*answer.notices, said))
