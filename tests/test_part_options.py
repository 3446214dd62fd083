"""Options that mix precisions within a layer: which are kept, what they gain, and plans that use them."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.layer_option import parse_option, parse_options
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.planning.part_options import MOST, envelope, mixed_gains, select_options
from llmpq.program import Program, Target
from llmpq.sensitivity import SensitivityTable
from tests.values import program, two_cpus

NATS = {"16": 0.0, "w8a8": 0.002, "w8a16": 0.001, "w4a16": 0.02, "w3a16": 0.1}


def mixing(attention: float, mlp: float, precisions: str = "16,w8a16,w4a16", memory: str = "64 MiB") -> Program:
    """A program whose layers lose that much by their parts at 4 bits, relative to NATS."""
    plain = program(cluster=two_cpus(memory, memory))
    options = parse_options(precisions, "part")
    row = tuple(attention * NATS[each.of("attention").name] + mlp * NATS[each.of("mlp").name] for each in options)
    table = SensitivityTable(tuple(each.name for each in options), (row,) * plain.graph.num_layers, "test", "test")
    asked = replace(plain, request=replace(plain.request, precisions=options), sensitivity=table)
    return run_passes(asked, parse_pipeline("derive-costs"))


def test_costs_sensitivity_and_request_keep_the_same_options() -> None:
    chosen = run_passes(mixing(3.0, 0.1), parse_pipeline("select-options"))
    names = tuple(option.name for option in chosen.request.precisions)
    assert names == chosen.require("costs").options == chosen.require("sensitivity").options
    assert {"16", "w8a16", "w4a16"} <= set(names) and len(names) <= MOST
    full = mixing(3.0, 0.1)
    for index, option in enumerate(chosen.request.precisions):
        place = full.request.precisions.index(option)
        assert chosen.require("costs").layer_bytes[0][index] == full.require("costs").layer_bytes[0][place]
        for found, before in ((chosen.require("costs").decode, full.require("costs").decode),):
            assert found[0].layer_s[0][0][index] == before[0].layer_s[0][0][place]


def test_the_mixtures_that_spare_the_sensitive_part_are_kept_and_the_others_are_not() -> None:
    names = {option.name for option in select_options(mixing(5.0, 0.05)).request.precisions}
    assert {"w8a16/w4a16", "16/w4a16"} <= names
    assert not {"w4a16/w8a16", "w4a16/16"} & names


def test_of_many_mixtures_those_that_gain_most_are_kept() -> None:
    asked = mixing(2.0, 0.5, "16,w8a8,w8a16,w4a16,w3a16")
    gains, kept = mixed_gains(asked), select_options(asked).request.precisions
    assert len(asked.request.precisions) == 25 and len(kept) == MOST
    mixed = {index: gain for index, gain in gains.items() if asked.request.precisions[index] in kept}
    assert min(mixed.values()) > 0
    assert min(mixed.values()) >= max(gain for index, gain in gains.items() if index not in mixed)


def test_a_plan_within_tight_memory_loses_less_with_mixtures_than_without() -> None:
    def least(asked: Program) -> tuple[float, tuple[str, ...]]:
        free = replace(asked, request=replace(asked.request, target=Target(None, theta=1e6, explicit=True)))
        plan = run_passes(free, parse_pipeline("assign-joint{gap=0}")).require("plan")
        return plan.quality.sensitivity, plan.options

    memory = "1.1 MiB"
    mixed = select_options(mixing(5.0, 0.05, memory=memory))
    plain = replace(
        mixed,
        request=replace(mixed.request, precisions=parse_options("16,w8a16,w4a16")),
        sensitivity=mixed.require("sensitivity").select(("16", "w8a16", "w4a16")),
        costs=None,
    )
    loss, options = least(mixed)
    other, whole = least(run_passes(plain, parse_pipeline("derive-costs")))
    assert any("/" in option for option in options) and not any("/" in option for option in whole)
    assert loss < 0.8 * other


def test_a_mixture_takes_the_time_of_its_parts() -> None:
    asked = mixing(1.0, 1.0)
    names = [option.name for option in asked.request.precisions]
    row = asked.require("costs").decode[0].layer_s[0][0]
    pairs = combinations(("16", "w8a16", "w4a16"), 2)
    for a, b in pairs:
        mixed = [row[names.index(name)] for name in (f"{a}/{b}", f"{b}/{a}")]
        assert sum(mixed) == pytest.approx(row[names.index(a)] + row[names.index(b)])


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=6),
    st.floats(0, 10),
    st.floats(0, 1),
)
def test_no_mean_of_two_points_that_costs_as_little_lies_below_the_envelope(
    points: list[tuple[float, float]], at: float, share: float
) -> None:
    found = envelope(points, at)
    for (x0, y0), (x1, y1) in [*combinations(points, 2), *((point, point) for point in points)]:
        if share * x0 + (1 - share) * x1 <= at - 1e-9:
            assert found <= share * y0 + (1 - share) * y1 + 1e-6 * (1 + abs(y0) + abs(y1))


def test_an_option_of_one_precision_has_no_gain_of_its_own() -> None:
    asked = mixing(1.0, 1.0)
    assert {asked.request.precisions[index].name for index in mixed_gains(asked)} == {
        option.name for option in asked.request.precisions if option != parse_option(option.name.split("/")[0])
    }
