"""Profiles as values: interpolation, scaling by speed, bands, and what they replace in a cost table."""

import json
from dataclasses import replace
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.costs import derive_costs
from llmpq.costs.interpolation import along, interpolate
from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Machine, Profile, ends_digest, kind_digest
from llmpq.costs.step import step_of
from llmpq.costs.step_times import prompts_s
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.link import Link
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.serialize import dumps, loads, to_json
from llmpq.workload import Batch
from tests.values import llama_graph, llama_kind, two_cpus

GRAPH = llama_graph()
KIND = GRAPH.kinds[0]
W4 = PRECISIONS["w4a16"]
CPU = Cluster.load("1xCPU").devices[0]


def timing(seconds: float, spread: float = 1.0) -> Timing:
    return Timing(seconds, seconds / spread, seconds * spread)


def profile(spread: float = 1.0, speed: float = 1.0) -> Profile:
    """A layer takes 1 us a new token and position, 2 us in w4a16; ends 3 us and 5 us a sequence."""
    points = tuple(
        Point(
            name,
            rows,
            tokens,
            context,
            (timing(factor * rows * context, spread),),
            timing(3e-6 * rows, spread),
            timing(5e-6 * rows, spread),
        )
        for name, factor in (("16", 1e-6), ("w4a16", 2e-6))
        for rows in (1, 4, 16)
        for tokens, context in ((16, 16), (64, 64), (256, 256), (1, 32), (1, 128), (1, 512))
    )
    machine = Machine("Linux", "a processor", 2, 1, (("torch", "2"),))
    return Profile("CPU", speed, "bfloat16", "tiny", (kind_digest(KIND),), ends_digest(GRAPH), machine, points)


SIZES = st.lists(st.integers(1, 10**5), min_size=2, unique=True)


@given(st.floats(1e-6, 1.0), st.floats(1.0, 2.0), SIZES, st.integers(1, 10**6))
def test_powers_of_the_size_are_interpolated_and_continued_exactly(scale: float, power: float, xs: list[int], x: int) -> None:
    assert isclose(along({at: scale * at**power for at in xs}, x), scale * x**power, rel_tol=1e-6)


@given(st.floats(1e-6, 1.0), st.floats(0.0, 1.0), SIZES, st.integers(1, 10**6))
def test_so_is_what_takes_a_while_to_start_and_then_the_same_for_every_token(
    start: float, each: float, xs: list[int], x: int
) -> None:
    assert isclose(along({at: start + each * at for at in xs}, x), start + each * x, rel_tol=1e-6)


@given(st.dictionaries(st.integers(1, 4096), st.floats(1e-6, 10.0), min_size=1))
def test_what_was_measured_comes_back(points: dict[int, float]) -> None:
    for x, seconds in points.items():
        assert isclose(along(points, x), seconds, rel_tol=1e-9)


def test_beyond_the_grid_nothing_becomes_cheaper_or_grows_faster_than_squared() -> None:
    noisy = {64: 2.0, 128: 1.0}
    assert along(noisy, 1024) == 1.0
    steep = {64: 1.0, 128: 1000.0}
    assert along(steep, 256) == pytest.approx(4000.0)


def test_a_grid_without_its_large_corner_is_continued_along_the_lengths_first() -> None:
    grid = {1: {16: 16.0, 64: 64.0, 256: 256.0}, 16: {16: 256.0, 64: 1024.0}, 32: {16: 1e9}}
    assert interpolate(grid, 16, 256) == pytest.approx(4096.0)
    assert interpolate(grid, 4, 128) == pytest.approx(512.0)


def test_sequences_measured_at_one_length_grow_with_it_as_those_measured_at_several() -> None:
    grid = {1: {16: 1.0, 64: 4.0}, 4: {16: 4.0}}
    assert interpolate(grid, 4, 64) == pytest.approx(16.0)
    assert interpolate(grid, 1, 64) == pytest.approx(4.0)


def test_prompts_measured_at_one_length_go_by_the_tokens_of_all() -> None:
    grid = {1: {16: 1.0}, 4: {16: 4.0}}
    assert prompts_s(grid, 1, 64) == pytest.approx(4.0)
    assert prompts_s(grid, 4, 64) == pytest.approx(16.0)
    assert prompts_s(grid, 0.5, 64) == pytest.approx(2.0)


def test_a_device_of_half_the_speed_takes_twice_as_long() -> None:
    slow = replace(CPU, speed=0.5)
    assert profile().layer_s(CPU, KIND, W4, step_of(4, 64, 64)) == pytest.approx(2e-6 * 4 * 64)
    assert profile().layer_s(slow, KIND, W4, step_of(4, 64, 64)) == pytest.approx(4e-6 * 4 * 64)
    assert profile(speed=0.5).layer_s(slow, KIND, W4, step_of(4, 64, 64)) == pytest.approx(2e-6 * 4 * 64)


def test_what_was_not_profiled_has_no_time() -> None:
    other = Cluster.load("1xT4").devices[0]
    assert profile().layer_s(other, KIND, W4, step_of(4, 64, 64)) is None
    assert profile().layer_s(CPU, llama_kind(hidden=256), W4, step_of(4, 64, 64)) is None
    assert profile().layer_s(CPU, KIND, PRECISIONS["w8a8"], step_of(4, 64, 64)) is None
    assert profile().ends_s(other, GRAPH, step_of(4, 64, 64)) is None
    assert profile().ends_s(CPU, llama_graph(vocab=1024), step_of(4, 64, 64)) is None


def test_the_name_of_a_kind_does_not_matter_and_its_structure_does() -> None:
    assert kind_digest(replace(KIND, name="layer-7")) == kind_digest(KIND)
    assert kind_digest(llama_kind(window=64)) != kind_digest(KIND)


def test_profiles_survive_their_file() -> None:
    found = replace(profile(), link=Link(2e9, 6e-5, "measured"))
    assert loads(Profile, dumps(found)) == found


def test_the_band_holds_spread_and_what_interpolation_misses() -> None:
    low, high = profile().band
    assert low == pytest.approx(1.0) and high == pytest.approx(1.0)
    low, high = profile(spread=1.2).band
    assert low == pytest.approx(1 / 1.2) and high == pytest.approx(1.2)
    bent = tuple(replace(point, layers=(timing(2.0 if point.context in (64, 128) else 1.0),)) for point in profile().points)
    assert replace(profile(), points=bent).band[1] == pytest.approx(2.0)


def test_phases_are_corrected_apart() -> None:
    found = profile().scaled(prefill=2.0, decode=3.0)
    assert found.layer_s(CPU, KIND, W4, step_of(1, 64, 64)) == pytest.approx(2 * 2e-6 * 64)
    assert found.layer_s(CPU, KIND, W4, step_of(1, 1, 128)) == pytest.approx(3 * 2e-6 * 128)
    assert found.ends_s(CPU, GRAPH, step_of(1, 1, 128)) == pytest.approx((9e-6, 15e-6))


def test_a_cost_table_asks_the_profile_first() -> None:
    cluster, workload = two_cpus(), Batch(4, 64, 32)
    costs = derive_costs(GRAPH, cluster, workload, parse_precisions("16,w8a8,w4a16"), "bfloat16", "local", profile=profile())
    prefill, decode = costs.phase("prefill", 4), costs.phase("decode", 4)
    assert prefill.layer_s[0][0][2] == pytest.approx(2 * 2e-6 * 4 * 64)  # speed 0.5
    assert prefill.layer_s[0][1][0] == pytest.approx(4 * 1e-6 * 4 * 64)  # speed 0.25
    assert decode.layer_s[0][0][2] == pytest.approx(2 * 2e-6 * 4 * 80)  # half way: 64 + 16 positions
    assert (prefill.first_s[0], prefill.last_s[1]) == pytest.approx((2 * 3e-6 * 4, 4 * 5e-6 * 4))
    assert costs.provenance == "measured, within 100% to 100%"


def test_precisions_and_dtypes_without_measurements_are_costed_as_before() -> None:
    given = (GRAPH, two_cpus(), Batch(4, 64, 32), parse_precisions("16,w8a8,w4a16"))
    modelled = derive_costs(*given, "bfloat16", "local")
    measured = derive_costs(*given, "bfloat16", "local", profile=profile())
    assert measured.phase("prefill", 4).layer_s[0][0][1] == modelled.phase("prefill", 4).layer_s[0][0][1]
    assert derive_costs(*given, "float16", "local", profile=profile()) == derive_costs(*given, "float16", "local")


def test_a_measured_link_replaces_an_assumed_one_between_devices_of_its_type() -> None:
    linked = replace(profile(), link=Link(2e9, 6e-5, "measured"))
    assert linked.applied(Cluster.load("1xCPU+1xCPU")).within_host == linked.link
    for cluster in (two_cpus(), Cluster.load("1xCPU+1xT4")):
        assert linked.applied(cluster) == cluster


def test_every_stage_is_charged_its_messages_by_its_speed_and_those_of_other_types_are_not() -> None:
    taken = replace(profile(), message_cpu_s=1e-3)
    half = replace(CPU, speed=0.5)
    step = step_of(1, 1, 32)
    assert taken.message_s(CPU, GRAPH, step) == pytest.approx(1e-3)
    assert taken.message_s(half, GRAPH, step) == pytest.approx(2e-3)
    assert taken.message_s(Cluster.load("1xT4").devices[0], GRAPH, step) == 0.0
    assert replace(taken, ends="other").message_s(CPU, GRAPH, step) == 0.0


def test_profiles_of_before_messages_were_measured_are_read() -> None:
    before = to_json(profile())
    del before["message_cpu_s"]
    assert loads(Profile, json.dumps(before), "old").message_cpu_s == 0.0
