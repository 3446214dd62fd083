"""Orders: the sets and orders of devices of the outer search, identical devices taken as interchangeable."""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice, permutations, product
from math import prod

from llmpq.hardware.cluster import Cluster, Device, Link
from llmpq.program import Program
from llmpq.solver.rule_syntax import Device as NamedDevice
from llmpq.solver.rule_syntax import Name
from llmpq.solver.rules import Rule

LIKELY_ORDERS = 60  # of those that keep identical devices adjacent
MAX_TEAMS = 1000

Order = tuple[int, ...]  # indexes into the cluster


def teams(groups: tuple[Order, ...]) -> tuple[Order, ...] | None:
    """Every set of two or more devices up to swaps of identical ones, members ascending; None when above MAX_TEAMS."""
    if prod(len(group) + 1 for group in groups) > MAX_TEAMS:
        return None
    chosen = product(*(range(len(group) + 1) for group in groups))
    found = (tuple(sorted(j for group, n in zip(groups, numbers) for j in group[:n])) for numbers in chosen)
    return tuple(team for team in found if len(team) > 1)


def distinct_orders(groups: tuple[Order, ...], team: Order) -> Iterator[Order]:
    """Orders of the team that differ in more than a swap of identical devices, each once, made as they are asked for.

    The cluster's own comes first, then those that keep identical devices adjacent.
    """
    inside = tuple(kept for group in groups if (kept := tuple(j for j in group if j in team)))
    likely = (tuple(j for group in block for j in group) for block in permutations(inside))
    first = tuple(dict.fromkeys((ascending(groups, tuple(sorted(team))), *islice(likely, LIKELY_ORDERS))))
    yield from first
    seen = set(first)
    yield from (order for order in _multiset_orders(inside) if order not in seen)


def ascending(groups: tuple[Order, ...], order: Order) -> Order:
    """The same order up to swaps of identical devices, their members ascending."""
    home = {j: group for group in groups for j in group}
    members = {group: iter(sorted(j for j in group if j in order)) for group in groups}
    return tuple(next(members[home[j]]) for j in order)


def identical_devices(program: Program) -> tuple[Order, ...]:
    """Groups of devices that neither figures nor links nor the user's rules tell apart, members ascending."""
    cluster, named = program.request.cluster, named_devices(program.request.rules)
    groups: list[list[int]] = []
    for j, device in enumerate(cluster.devices):
        free = device.name.casefold() not in named
        home = next((group for group in groups if free and _are_twins(cluster, named, group[0], j)), None)
        if home is None:
            groups.append([j])
        else:
            home.append(j)
    return tuple(map(tuple, groups))


def _are_twins(cluster: Cluster, named: set[str], a: int, b: int) -> bool:
    """Whether swapping the two leaves the cluster as it is."""
    first, second = cluster.devices[a], cluster.devices[b]
    if first.name.casefold() in named or _figures(first) != _figures(second):
        return False
    links = link_table(cluster)
    others = [c for c in range(len(cluster.devices)) if c not in (a, b)]
    same = all(links[a][c] == links[b][c] and links[c][a] == links[c][b] for c in others)
    return same and links[a][b] == links[b][a]


def _figures(device: Device) -> tuple[object, ...]:
    return (device.type, device.memory_bytes, device.reserve_bytes, device.speed, device.ranks, device.within)


def named_devices(rules: Iterable[Rule]) -> set[str]:
    """Names that the rules mention, in lower case: of devices, and of precisions, which does no harm."""
    found: set[str] = set()
    for rule in rules:
        subject, operand = rule.comparison.subject, rule.comparison.operand
        names = [subject.name] if isinstance(subject, NamedDevice) else []
        if isinstance(operand, tuple):
            names += [name for name in operand if isinstance(name, Name)]
        found |= {name.text.casefold() for name in names}
    return found


@cache
def link_table(cluster: Cluster) -> tuple[tuple[Link, ...], ...]:
    """[from][to] of all devices of the cluster."""
    names = [device.name for device in cluster.devices]
    return tuple(tuple(cluster.link(a, b) for b in names) for a in names)


def _multiset_orders(groups: tuple[Order, ...]) -> Iterator[Order]:
    """Orders of all indexes with each group's members ascending."""
    if not any(groups):
        yield ()
    for g, group in enumerate(groups):
        if group:
            left = (*groups[:g], group[1:], *groups[g + 1 :])
            yield from ((group[0], *rest) for rest in _multiset_orders(left))
