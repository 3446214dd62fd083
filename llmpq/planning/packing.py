"""Packing: which teams, no device in two of them, are worth the most together."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Whole = NDArray[np.int64]

Counts = tuple[int, ...]  # devices of each kind of interchangeable ones


@dataclass(frozen=True)
class Packing:
    """The best choices of at most `most` teams by dynamic programming over how many devices of each kind are left.

    taken: of every team the devices of each kind, at least one; there: those of the cluster
    """

    taken: tuple[Counts, ...]
    there: Counts
    most: int

    @property
    def states(self) -> int:
        return prod(count + 1 for count in self.there)

    @cached_property
    def strides(self) -> Counts:
        return tuple(prod(count + 1 for count in self.there[kind + 1 :]) for kind in range(len(self.there)))

    @cached_property
    def pairs(self) -> "tuple[Whole, Whole, Whole]":
        """Of every state and team that fits into it, by state: the state, the team, the state that is left."""
        import numpy as np

        left = np.stack(np.unravel_index(np.arange(self.states), tuple(count + 1 for count in self.there)), axis=1)
        found = []
        for team, taken in enumerate(self.taken):
            fits = np.flatnonzero((left >= np.array(taken)).all(axis=1))
            size = sum(count * stride for count, stride in zip(taken, self.strides))
            found.append(np.stack((fits, np.full(len(fits), team), fits - size)))
        states, teams, rest = np.concatenate(found, axis=1)
        order = np.lexsort((teams, states))
        return states[order], teams[order], rest[order]

    def tables(self, values: "Floats") -> "Floats":
        """[pipelines, state]: the most that at most so many teams are worth on the devices of a state. values: [team], >= 0"""
        import numpy as np

        states, teams, rest = self.pairs
        best = np.zeros((self.most + 1, self.states))
        starts = np.flatnonzero(np.diff(states, prepend=-1))
        for pipelines in range(1, self.most + 1):
            gained = np.maximum.reduceat(values[teams] + best[pipelines - 1, rest], starts) if len(states) else ()
            best[pipelines] = best[pipelines - 1]
            best[pipelines, states[starts]] = np.maximum(best[pipelines, states[starts]], gained)
        return best

    def best(self, values: "Floats", enough: float = float("inf")) -> tuple[float, tuple[int, ...]]:
        """What the teams are worth together, and which; the fewest that are worth `enough`, or as much as any."""
        tables = self.tables(values)
        totals = tables[:, -1]
        pipelines = int((totals >= min(enough, totals[-1])).argmax())
        return float(totals[pipelines]), self._members(values, tables, pipelines)

    def rest(self, tables: "Floats", team: int) -> float:
        """The most that the others are worth beside that team."""
        size = sum(count * stride for count, stride in zip(self.taken[team], self.strides))
        return float(tables[self.most - 1, self.states - 1 - size])

    def _members(self, values: "Floats", tables: "Floats", pipelines: int) -> tuple[int, ...]:
        import numpy as np

        states, teams, rest = self.pairs
        state, members = self.states - 1, []
        while pipelines and tables[pipelines, state] > 0:
            inside = slice(*np.searchsorted(states, (state, state + 1)))
            worth = values[teams[inside]] + tables[pipelines - 1, rest[inside]]
            chosen = int(worth.argmax())
            members.append(int(teams[inside][chosen]))
            state, pipelines = int(rest[inside][chosen]), pipelines - 1
        return tuple(member for member in members if values[member] > 0)
