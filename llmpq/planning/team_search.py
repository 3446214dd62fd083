"""TeamSearch: the best pipelines of teams, each searched only as far as it can matter to all of them together."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from llmpq.planning.candidates import Group
from llmpq.planning.search import Found, Search
from llmpq.planning.teams import Team, Teams
from llmpq.program import Program

FIRST_SLICE_S = 0.25  # of the first look at a team; each further one has twice that

Groups = Callable[[Program, Team], tuple[Group, ...]]
Key = tuple[int, int]  # team, share


@dataclass(slots=True)
class _Cell:
    search: Search
    slice_s: float = FIRST_SLICE_S
    done: bool = False


@dataclass(slots=True)
class TeamSearch:
    """Searches that are begun when they are asked for, and gone on with where they stopped."""

    program_of: Callable[[int], Program]
    teams: Teams
    groups: Groups
    budget: float | None
    gap: float
    deadline: float
    cells: dict[Key, _Cell] = field(default_factory=dict)

    def proceed(self, team: int, share: int, below: float) -> tuple[float, float]:
        """(bound, objective) of the team's best pipeline for that share after a while; from `below` on neither matters."""
        cell = self._cell(team, share)
        cell.search.below = min(cell.search.below, below)
        cell.done = cell.search.proceed(time.monotonic() + cell.slice_s)
        cell.slice_s *= 2
        best = cell.search.best
        return cell.search.bound, inf if best is None else best.objective

    def is_done(self, team: int, share: int) -> bool:
        return (team, share) in self.cells and self.cells[team, share].done

    def found(self, team: int, share: int) -> Found:
        """The best pipeline found, of a team and share that have one."""
        best = self.cells[team, share].search.best
        assert best is not None
        return best

    def _cell(self, team: int, share: int) -> _Cell:
        if (team, share) not in self.cells:
            program = self.program_of(share)
            space = self.teams.members[team].space(self.groups)
            search = Search(program, self.budget, space, self.gap, self.deadline, self.teams.kinds)
            search.begin()
            self.cells[team, share] = _Cell(search)
        return self.cells[team, share]
