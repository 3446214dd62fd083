"""Packings against enumeration: the most that disjoint teams are worth."""

import random
from itertools import combinations_with_replacement

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.planning.packing import Counts, Packing


def random_packing(rng: random.Random) -> tuple[Packing, list[float]]:
    """One to three kinds of devices, a handful of teams, some of them worth nothing."""
    there = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 3)))
    teams = {tuple(rng.randint(0, count) for count in there) for _ in range(6)} - {(0,) * len(there)}
    teams |= {tuple(int(place == 0) for place in range(len(there)))}
    packing = Packing(tuple(sorted(teams)), there, rng.randint(1, 4))
    return packing, [rng.choice((0.0, rng.random())) for _ in teams]


def fits(chosen: tuple[int, ...], packing: Packing) -> bool:
    used: Counts = tuple(sum(packing.taken[team][kind] for team in chosen) for kind in range(len(packing.there)))
    return all(count <= most for count, most in zip(used, packing.there))


def enumerated(packing: Packing, values: list[float]) -> float:
    numbers = range(len(packing.taken))
    choices = (c for size in range(packing.most + 1) for c in combinations_with_replacement(numbers, size))
    return max(sum(values[team] for team in chosen) for chosen in choices if fits(chosen, packing))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_the_best_packing_is_the_best_of_an_enumeration(seed: int) -> None:
    packing, values = random_packing(random.Random(seed))
    worth, members = packing.best(np.array(values))
    assert abs(worth - enumerated(packing, values)) < 1e-9
    assert abs(sum(values[team] for team in members) - worth) < 1e-9
    assert len(members) <= packing.most
    assert fits(members, packing)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_no_fewer_teams_are_worth_enough(seed: int, share: float) -> None:
    packing, values = random_packing(random.Random(seed))
    enough = share * enumerated(packing, values)
    worth, members = packing.best(np.array(values), enough)
    assert worth >= enough - 1e-9
    if len(members) > 1:
        fewer = Packing(packing.taken, packing.there, len(members) - 1)
        assert enumerated(fewer, values) < enough


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_left_beside_a_team_is_what_others_are_worth_on_the_devices_that_it_leaves(seed: int) -> None:
    packing, values = random_packing(random.Random(seed))
    tables = packing.tables(np.array(values))
    for team, taken in enumerate(packing.taken):
        left = tuple(most - count for count, most in zip(taken, packing.there))
        beside = Packing(packing.taken, left, packing.most - 1)
        assert abs(packing.rest(tables, team) - enumerated(beside, values)) < 1e-9
