"""Space: what a search looks at, and under which restrictions."""

from collections.abc import Callable
from dataclasses import dataclass

from llmpq.planning.candidates import Group, candidate_groups
from llmpq.program import Program
from llmpq.solver.problem import Problem

Restriction = Callable[[Problem], Problem]


def unrestricted(problem: Problem) -> Problem:
    return problem


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched: all devices `together` or each alone only, every problem under each of the restrictions.

    Restrictions take options or bytes away. Not `limited`: the limits of a serving workload are ignored, and restrictions may
    make any objective of the seconds. `whole`: only what leaves no device of a group out.
    """

    together: bool = True
    restrictions: tuple[Restriction, ...] = (unrestricted,)
    accept: Callable[[Program, tuple[Group, ...]], tuple[Group, ...]] = lambda _, groups: groups
    limited: bool = True
    whole: bool = False

    def groups(self, program: Program) -> tuple[Group, ...]:
        return self.accept(program, candidate_groups(program, together=self.together))


EVERYTHING = Space()
