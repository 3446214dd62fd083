"""The schedule: golden text, round trip, and the simulation against the closed forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import BackendError
from llmpq.runtime.schedule import Schedule, parse_schedule, schedule
from llmpq.runtime.simulate import Times, simulate

TWO_MICRO_BATCHES_ON_THREE_STAGES = """\
schedule: 2 P per D
0: P0 P1 P2 P3 D0 .  D1 D0 .  D1 .  .
1: .  P0 P1 P2 P3 D0 .  D1 D0 .  D1 .
2: .  .  P0 P1 P2 P3 D0 .  D1 D0 .  D1
"""
ONE_STAGE = """\
schedule: 1 P per D
0: P0 D0 D0
"""
UNEVEN = """\
schedule: 4 P per D
0: P0 P1 P2 P3 P4 D0 D1 D0 D1 .
1: .  P0 P1 P2 P3 P4 D0 D1 D0 D1
"""
DECODE_ALONE = """\
schedule: 1 P per D
0: D0 .  D0 .
1: .  D0 .  D0
"""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3, 4, 2, 3), TWO_MICRO_BATCHES_ON_THREE_STAGES),
        ((1, 1, 1, 3), ONE_STAGE),
        ((2, 5, 2, 3, 4), UNEVEN),
        ((2, 0, 1, 3), DECODE_ALONE),
    ],
)
def test_a_schedule_prints_as_the_golden_text_and_parses_back(arguments: tuple[int, ...], text: str) -> None:
    made = schedule(*arguments)
    assert str(made) == text
    assert parse_schedule(text) == made


shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))


def made_from(shape: tuple[int, int, int, int], missing: int = 0) -> Schedule:
    num_stages, share, decode, gen_len = shape
    return schedule(num_stages, share * decode - min(missing, share - 1), decode, gen_len, share)


@given(shapes, st.integers(0, 3))
def test_any_schedule_survives_its_text_form(shape: tuple[int, int, int, int], missing: int) -> None:
    made = made_from(shape, missing)
    assert parse_schedule(str(made)) == made


@given(shapes, st.integers(0, 3))
def test_every_stage_does_every_action_once_and_one_slot_after_the_stage_before(
    shape: tuple[int, int, int, int], missing: int
) -> None:
    made = made_from(shape, missing)
    num_stages, share, decode, gen_len = shape
    prefills = share * decode - min(missing, share - 1)
    expected = [f"P{index}" for index in range(prefills)] + [f"D{index}" for index in range(decode)] * (gen_len - 1)
    for stage in range(num_stages):
        assert list(map(str, made.actions(stage))) == expected
        assert made.rows[stage][stage:] == made.rows[0][: len(made.rows[0]) - stage]


@given(shapes, st.integers(0, 3))
def test_a_decode_micro_batch_reenters_only_after_its_tokens_returned(shape: tuple[int, int, int, int], missing: int) -> None:
    made = made_from(shape, missing)
    first, last = made.rows[0], made.rows[-1]
    returned_at: dict[int, list[int]] = {}
    for slot, action in enumerate(last):
        if action is not None:
            owner = action.micro_batch if action.phase == "D" else action.micro_batch // made.prefill_per_decode
            returned_at.setdefault(owner, []).append(slot)
    for owner, slots in returned_at.items():
        own = [slot for slot, action in enumerate(first) if action is not None and str(action) == f"D{owner}"]
        steps = slots[len(slots) - len(own) - 1 :]
        assert all(entered > returned for entered, returned in zip(own, steps))


seconds = st.floats(0.001, 10, allow_nan=False)


@st.composite
def timed_pipelines(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    num_stages = draw(st.integers(1, 5))
    return [draw(seconds) for _ in range(num_stages)], [draw(st.just(0.0) | seconds) for _ in range(num_stages)]


@given(timed_pipelines(), st.integers(1, 6), st.booleans())
def test_simulated_prefill_equals_the_closed_form(
    pipeline: tuple[list[float], list[float]], micro_batches: int, overlap: bool
) -> None:
    compute, links = pipeline
    made = schedule(len(compute), micro_batches, micro_batches, 1)
    total = simulate(made, both(compute), both(links), overlap)
    assert total == pytest.approx(sum(compute) + sum(links) + (micro_batches - 1) * slowest(compute, links, overlap))


@given(timed_pipelines(), st.integers(1, 6), st.integers(2, 6), st.booleans())
def test_simulated_decode_after_a_barrier_equals_the_round_trip_form(
    pipeline: tuple[list[float], list[float]], micro_batches: int, gen_len: int, overlap: bool
) -> None:
    compute, links = pipeline
    made = schedule(len(compute), 0, micro_batches, gen_len)
    trip, slow = sum(compute) + sum(links), slowest(compute, links, overlap)
    expected = (gen_len - 2) * max(trip, micro_batches * slow) + trip + (micro_batches - 1) * slow
    assert simulate(made, both(compute), both(links), overlap) == pytest.approx(expected)


@given(timed_pipelines(), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_without_the_barrier_a_batch_never_takes_longer(
    pipeline: tuple[list[float], list[float]], decode: int, share: int, gen_len: int
) -> None:
    compute, links = pipeline
    stages, between = both(compute), both(links)
    whole = simulate(schedule(len(compute), share * decode, decode, gen_len), stages, between)
    prefill = simulate(schedule(len(compute), share * decode, decode, 1), stages, between)
    rounds = simulate(schedule(len(compute), 0, decode, gen_len), stages, between)
    assert whole <= prefill + rounds + 1e-9


def both(times: list[float]) -> Times:
    return Times(tuple(times), tuple(times))


def slowest(compute: list[float], links: list[float], overlap: bool) -> float:
    pairs = zip(compute, links)
    return max(max(pair) if overlap else sum(pair) for pair in pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: P0\n", "line 1: found '0: P0'"),
        ("schedule: 1 P per D\n1: P0\n", "line 2: found '1:', expected '0:'"),
        ("schedule: 1 P per D\n0: P0 X1\n", "line 2: found 'X1'"),
    ],
)
def test_a_malformed_text_is_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize("arguments", [(0, 1, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0), (2, 4, 3, 2), (2, 5, 2, 3, 2)])
def test_counts_that_leave_a_micro_batch_empty_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match="expected at least one of each"):
        schedule(*arguments)


def test_a_schedule_that_waits_for_ever_is_named() -> None:
    stuck = parse_schedule("schedule: 1 P per D\n0: P0 D0\n1: D0 P0\n")
    with pytest.raises(BackendError, match="stage 0 waits for ever at D0"):
        simulate(stuck, both([1.0, 1.0]), both([0.0, 0.0]))


def test_times_for_another_number_of_stages_are_refused() -> None:
    with pytest.raises(BackendError, match="link times for 1 stages, the schedule has 2"):
        simulate(schedule(2, 1, 1, 2), both([1.0, 1.0]), both([1.0]))
