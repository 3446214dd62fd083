"""Teams: sets of devices that may run one pipeline of several, up to swaps of interchangeable devices."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from llmpq.planning.candidates import Group
from llmpq.planning.orders import MAX_TEAMS, Order, identical_devices
from llmpq.planning.packing import Counts
from llmpq.planning.space import Space
from llmpq.program import Program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Team:
    """The first devices of each kind of interchangeable ones, all of which one pipeline uses. `taken`: how many of each."""

    devices: Order
    taken: Counts

    def space(self, groups: Callable[[Program, "Team"], tuple[Group, ...]]) -> Space:
        """Its pipelines at the sizes that `groups` gives."""
        return Space(accept=lambda program, _: groups(program, self), whole=True)


@dataclass(frozen=True, slots=True)
class Teams:
    """`kinds`: the interchangeable devices; `complete`: whether every set of devices is there, up to swaps."""

    kinds: tuple[Order, ...]
    members: tuple[Team, ...]
    complete: bool

    @property
    def there(self) -> Counts:
        return tuple(map(len, self.kinds))

    @property
    def alone(self) -> "NDArray[np.bool_]":
        """[team] whether it is a single device."""
        import numpy as np

        return np.array([len(team.devices) == 1 for team in self.members])


def teams_of(program: Program) -> Teams:
    """Every set of devices; of more than MAX_TEAMS only single devices, those of one host, and all."""
    kinds = identical_devices(program)
    complete = prod(len(kind) + 1 for kind in kinds) <= MAX_TEAMS
    counts = product(*(range(len(kind) + 1) for kind in kinds)) if complete else _few(program, kinds)
    return Teams(kinds, tuple(_team(kinds, taken) for taken in counts if any(taken)), complete)


def _team(kinds: tuple[Order, ...], taken: Counts) -> Team:
    return Team(tuple(sorted(j for kind, count in zip(kinds, taken) for j in kind[:count])), taken)


def _few(program: Program, kinds: tuple[Order, ...]) -> list[Counts]:
    devices = program.request.cluster.devices
    hosts = dict.fromkeys(device.host for device in devices)
    sets = [{j} for j in range(len(devices))]
    sets += [{j for j, device in enumerate(devices) if device.host == host} for host in hosts]
    sets.append(set(range(len(devices))))
    return list(dict.fromkeys(tuple(len(members & set(kind)) for kind in kinds) for members in sets))


def real_devices(teams: Teams, parts: tuple[Team, ...]) -> tuple[dict[int, int], ...]:
    """For each of several teams its devices -> those that are its own, no device in two teams."""
    given = [0] * len(teams.kinds)
    found = []
    for part in parts:
        names: dict[int, int] = {}
        for number, (kind, count) in enumerate(zip(teams.kinds, part.taken)):
            names |= dict(zip(kind[:count], kind[given[number] : given[number] + count]))
            given[number] += count
        found.append(names)
    return tuple(found)
