"""The search over several pipelines: the best packing of teams under their bounds, refined until it is one of real plans."""

import time
from bisect import bisect_left
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from llmpq.costs import CostTable
from llmpq.plan import SERVED_TOKENS
from llmpq.planning.candidates import Group
from llmpq.planning.packing import Packing
from llmpq.planning.search import ROUNDING, Found
from llmpq.planning.shares import Shares, share_sizes
from llmpq.planning.team_bounds import TeamBounds
from llmpq.planning.team_search import TeamSearch
from llmpq.planning.teams import Team, Teams, teams_of
from llmpq.program import Program
from llmpq.workload import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Part:
    """One pipeline of several: `program` is what it was planned for, `weight` its share of all requests."""

    team: Team
    program: Program
    found: Found
    weight: float


@dataclass(frozen=True, slots=True)
class Several:
    """Pipelines and their objective together, with a bound of every set of pipelines. No parts: none is better than one."""

    teams: Teams
    parts: tuple[Part, ...]
    objective: float
    bound: float


def search_several(program: Program, budget: float | None, single: Found, most: int, deadline: float) -> Several:
    """The best of at most `most` pipelines, each of the best plan of its devices; `single`: the best of one pipeline.

    Serving: the objective is of all tokens together. A batch: that of the slowest pipeline. No two share a device.
    """
    teams = teams_of(program)
    packing = Packing(tuple(team.taken for team in teams.members), teams.there, min(most, sum(teams.there)))
    if isinstance(program.request.workload, Batch):
        return _Batch(program, budget, single, teams, packing, deadline).run(program.request.workload)
    return _Serving(program, budget, single, teams, packing, deadline).run()


def _steps(program: Program, team: Team) -> tuple[Group, ...]:
    """Every step with all devices of a team."""
    costs: CostTable = program.require("costs")
    return tuple(Group(team.devices, step.token_budget, step.sequences, len(team.devices)) for step in costs.steps)


@dataclass(slots=True)
class _Serving:
    """The rates of disjoint teams add up. `upper`, `lower`: [team] tokens per second, at most and found."""

    program: Program
    budget: float | None
    single: Found
    teams: Teams
    packing: Packing
    deadline: float

    def run(self) -> Several:
        import numpy as np

        bounds = TeamBounds(self.program, self.teams)
        upper = bounds.tokens_per_s()
        upper = np.minimum(upper, SERVED_TOKENS / self.single.bound) if self.single.bound > 0 else upper
        lower = np.zeros(len(upper))
        gap, one = self.program.request.gap, SERVED_TOKENS / self.single.objective
        pipelines = TeamSearch(lambda _: self.program, self.teams, _steps, self.budget, gap, self.deadline)
        self.refine(upper, lower, pipelines, self.teams.alone)
        total = self.refine(upper, lower, pipelines, np.ones(len(upper), dtype=bool))
        known, parts = self.packing.best(lower)
        bound = SERVED_TOKENS / max(total if self.teams.complete else bounds.most_tokens_per_s(), known, one)
        if known <= one * (1.0 + gap):
            return Several(self.teams, (), self.single.objective, bound)
        members = self.teams.members
        told = [Part(members[team], self.program, pipelines.found(team, 0), float(lower[team] / known)) for team in parts]
        return Several(self.teams, tuple(told), SERVED_TOKENS / known, bound)

    def refine(self, upper: "Floats", lower: "Floats", pipelines: TeamSearch, allowed: "Flags") -> float:
        """Until no packing of allowed teams can be better than what is known; what it is worth at most."""
        import numpy as np

        gap, one = self.program.request.gap, SERVED_TOKENS / self.single.objective
        while True:
            most = np.where(allowed, upper, 0.0)
            total, chosen = self.packing.best(most)
            best = max(self.packing.best(lower)[0], one)
            unknown = [team for team in chosen if not pipelines.is_done(team, 0)]
            if best >= total * (1.0 - gap) * (1.0 - ROUNDING) or not unknown or time.monotonic() >= self.deadline:
                return total
            tables = self.packing.tables(upper)
            for team in unknown:
                needed = best / (1.0 - gap) - self.packing.rest(tables, team)
                bound, objective = pipelines.proceed(team, 0, SERVED_TOKENS / needed if needed > 0 else inf)
                upper[team] = min(upper[team], SERVED_TOKENS / bound if bound > 0 else inf)
                lower[team] = max(lower[team], SERVED_TOKENS / objective)


@dataclass(slots=True)
class _Batch:
    """The batch is done when the slowest team has generated its share. Seconds are by [team, share], at least and found."""

    program: Program
    budget: float | None
    single: Found
    teams: Teams
    packing: Packing
    deadline: float

    def run(self, batch: Batch) -> Several:
        import numpy as np

        sizes, members = share_sizes(batch.batch_size), self.teams.members
        shares, bounds = Shares(self.program, batch), TeamBounds(self.program, self.teams)
        least = bounds.batch_seconds(shares, sizes)
        least[:, -1] = np.maximum(least[:, -1], self.single.bound)
        known, gap = np.full(least.shape, inf), self.program.request.gap
        pipelines = TeamSearch(shares.program_of, self.teams, shares.groups, self.budget, gap, self.deadline)
        self.refine(least, known, sizes, pipelines, self.teams.alone)
        bound = self.refine(least, known, sizes, pipelines, np.ones(len(least), dtype=bool))
        best, parts = self.least_makespan(known, sizes, self.single.objective * (1.0 - gap))
        best = best if parts else self.single.objective
        bound = min(best, bound if self.teams.complete else bounds.least_batch_seconds(shares))
        dealt = _dealt(batch.batch_size, [(sizes[place], float(known[team, place])) for team, place in parts])
        told = [
            Part(members[team], shares.program_of(sizes[place]), pipelines.found(team, sizes[place]), given / batch.batch_size)
            for (team, place), given in zip(parts, dealt)
            if given
        ]
        return Several(self.teams, tuple(told), best, bound)

    def refine(self, least: "Floats", known: "Floats", sizes: tuple[int, ...], pipelines: TeamSearch, allowed: "Flags") -> float:
        """Until no packing of allowed teams can be done sooner than what is known; the seconds that it takes at least."""
        import numpy as np

        gap = self.program.request.gap
        while True:
            best, _ = self.least_makespan(known, sizes, self.single.objective)
            bound, chosen = self.least_makespan(np.where(allowed[:, None], least, inf), sizes, best)
            unknown = [(team, place) for team, place in chosen if not pipelines.is_done(team, sizes[place])]
            if bound >= best * (1.0 - gap) * (1.0 - ROUNDING) or not unknown or time.monotonic() >= self.deadline:
                return bound
            for team, place in unknown:
                found, objective = pipelines.proceed(team, sizes[place], best * (1.0 - gap))
                least[team, place] = max(least[team, place], found)
                known[team, place] = min(known[team, place], objective)

    def least_makespan(
        self, seconds: "Floats", sizes: tuple[int, ...], below: float
    ) -> tuple[float, tuple[tuple[int, int], ...]]:
        """The least time in which disjoint teams can generate the batch by those seconds, [team, size], and who generates what.

        (below, nobody) where it is not less than `below`.
        """
        import numpy as np

        held = np.array(sizes, dtype=np.float64)
        times = np.unique(seconds[seconds < below])

        def worth(limit: float) -> "Floats":
            most: Floats = np.where(seconds <= limit, held, 0.0).max(axis=1)
            return most

        place = bisect_left(times, True, key=lambda limit: self.packing.best(worth(limit), sizes[-1])[0] >= sizes[-1])
        if place == len(times):
            return below, ()
        most = worth(times[place])
        _, chosen = self.packing.best(most, sizes[-1])
        return float(times[place]), tuple((team, sizes.index(int(most[team]))) for team in chosen)


def _dealt(batch_size: int, held: list[tuple[int, float]]) -> list[int]:
    """Sequences of each pipeline, at most what it is planned for: what is too much is taken from the slowest."""
    given, left = [size for size, _ in held], sum(size for size, _ in held) - batch_size
    for place in sorted(range(len(held)), key=lambda place: -held[place][1]):
        less = min(left, given[place])
        given[place], left = given[place] - less, left - less
    return given
