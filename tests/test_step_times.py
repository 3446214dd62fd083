"""Mixed steps by what was measured: attention apart from the rest of a layer, or pass after pass."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.costs import derive_costs
from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Machine, Profile, ends_digest, kind_digest
from llmpq.costs.step import Step, step_of
from llmpq.costs.step_times import SeparatePasses, SharedSteps
from llmpq.hardware.cluster import Cluster
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.sensitivity import SensitivityTable
from llmpq.workload import Batch, Serving
from tests.values import llama_graph, program, two_cpus

GRAPH = llama_graph()
SIXTEEN = PRECISIONS["16"]
CPU = Cluster.load("1xCPU").devices[0]
SIZES = tuple((rows, tokens, tokens) for rows in (1, 4) for tokens in (16, 64, 256)) + tuple(
    (rows, 1, context) for rows in (1, 4, 16) for context in (32, 128, 512)
)
RANK_S, ENGINE_S, MESSAGE_S = 2e-4, 1e-4, 3e-4


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds)


def attention_of(rows: int, tokens: int, context: int) -> float:
    return 1e-8 * rows * (context if tokens == 1 else tokens**2)


def point(rows: int, tokens: int, context: int, decoding: int = 0, decode_context: int = 0, off: float = 1.0) -> Point:
    """Linears take 10 us a token of the step, attention 10 ns a pair; ends 1 us a token and 30 us a sequence."""
    inside = attention_of(rows, tokens, context) + attention_of(decoding, 1, decode_context)
    return Point(
        precision="16",
        rows=rows,
        tokens=tokens,
        context=context,
        decoding=decoding,
        decode_context=decode_context,
        layers=(timing(off * (1e-5 * (rows * tokens + decoding) + inside)),),
        attention=(timing(off * inside),),
        first=timing(1e-6 * rows * tokens),
        last=timing(3e-5 * rows + (1e-7 * rows * tokens if tokens > 1 else 0.0)),
        rank=timing(RANK_S),
        engine=timing(ENGINE_S),
        message=timing(MESSAGE_S),
    )


POINTS = tuple(point(*size) for size in SIZES)


def profile(points: tuple[Point, ...] = POINTS, engine: str = "vllm") -> Profile:
    machine = Machine("Linux", "a processor", 2, 1, (("vllm", "0.32"),))
    kinds, ends = (kind_digest(GRAPH.kinds[0]),), ends_digest(GRAPH)
    return Profile("CPU", 1.0, "bfloat16", "tiny", kinds, ends, machine, points, engine=engine)


def separate() -> tuple[Point, ...]:
    return tuple(replace(each, attention=(), rank=None, engine=None, message=None) for each in POINTS)


@given(st.integers(1, 16), st.integers(32, 512), st.integers(1, 3), st.integers(16, 256))
def test_a_mixed_step_has_linears_of_all_its_tokens_and_attention_of_both_kinds(
    sequences: int, context: int, prompts: int, length: int
) -> None:
    found = SharedSteps(POINTS).layer_s(0, "16", Step(sequences, context, prompts, length, length))
    inside = attention_of(sequences, 1, context) + attention_of(prompts, length, length)
    assert found == pytest.approx(1e-5 * (sequences + prompts * length) + inside)


def test_part_of_a_prompt_sees_what_stands_before_it_without_computing_it() -> None:
    found = SharedSteps(POINTS).layer_s(0, "16", Step(0, 0, 1.0, 64, 256))
    assert found == pytest.approx(1e-5 * 64 + attention_of(1, 256, 256) - attention_of(1, 192, 192))


def test_half_a_prompt_a_step_is_half_of_one() -> None:
    found = SharedSteps(POINTS).layer_s(0, "16", Step(4, 128, 0.5, 64, 64))
    assert found == pytest.approx(1e-5 * 36 + attention_of(4, 1, 128) + attention_of(1, 64, 64) / 2)


def test_ends_are_by_tokens_before_the_layers_and_by_sampled_sequences_behind_them() -> None:
    assert SharedSteps(POINTS).ends_s(Step(4, 128, 1, 64, 64)) == pytest.approx((1e-6 * 68, 3e-5 * 5 + 1e-7 * 64))
    assert SharedSteps(POINTS).rank_s(Step(4, 128)) == pytest.approx(RANK_S)
    assert SharedSteps(POINTS).message_s(Step(4, 128)) == pytest.approx(MESSAGE_S)


def test_without_attention_of_its_own_a_mixed_step_is_one_pass_after_the_other() -> None:
    times, step = SeparatePasses(separate()), Step(4, 128, 2, 64, 64)
    decode, prefill = (times.layer_s(0, "16", each) for each in (Step(4, 128), step_of(2, 64, 64)))
    assert decode is not None and prefill is not None
    assert times.layer_s(0, "16", step) == pytest.approx(decode + prefill)


@pytest.mark.parametrize("points", [POINTS, separate()], ids=["shared", "separate"])
def test_a_phase_that_was_not_measured_has_no_time(points: tuple[Point, ...]) -> None:
    found = profile(tuple(each for each in points if each.is_decode))
    assert found.layer_s(CPU, GRAPH.kinds[0], SIXTEEN, Step(4, 128)) is not None
    assert found.layer_s(CPU, GRAPH.kinds[0], SIXTEEN, Step(4, 128, 1, 64, 64)) is None
    assert found.ends_s(CPU, GRAPH, step_of(1, 64, 64)) is None


def test_mixed_steps_that_are_slower_than_their_parts_widen_the_band() -> None:
    honest, slower = (point(1, 64, 64, 4, 128, off=off) for off in (1.0, 1.3))
    assert profile((*POINTS, honest)).band == pytest.approx((1.0, 1.0))
    assert profile((*POINTS, *(slower,) * 9)).band[1] == pytest.approx(1.3)


def test_the_speed_of_a_device_does_not_slow_down_the_engine_in_front_of_it() -> None:
    slow, step = replace(CPU, speed=0.25), Step(4, 128)
    (fast_first, fast_last), (first, last) = (profile().ends_s(each, GRAPH, step) or (0.0, 0.0) for each in (CPU, slow))
    assert first - ENGINE_S == pytest.approx(4 * (fast_first - ENGINE_S))
    assert last == pytest.approx(4 * fast_last) and fast_last == pytest.approx(3e-5 * 4 + RANK_S)


def test_every_stage_is_charged_its_messages_with_its_link_and_all_but_the_last_their_own_part() -> None:
    cluster, workload, precisions = two_cpus(), Batch(4, 64, 32), parse_precisions("16")
    given = (GRAPH, cluster, workload, precisions, "bfloat16", "vllm")
    table = SensitivityTable(("16",), ((0.0,),) * GRAPH.num_layers, "prior", "none")
    without, measured = (
        build_problem(
            replace(program(GRAPH, cluster, workload, "16"), costs=costs, sensitivity=table, compute_dtype="bfloat16"),
            Candidate((0, 1), 4, 4),
            None,
        )
        for costs in (derive_costs(*given), derive_costs(*given, profile=profile()))  # type: ignore[arg-type]
    )
    assert measured.link_decode_s[0][1] - without.link_decode_s[0][1] == pytest.approx((RANK_S + MESSAGE_S) / 0.5)
    assert measured.link_decode_s[1][0] - without.link_decode_s[1][0] == pytest.approx(MESSAGE_S / 0.25)
    assert measured.last_stage.decode_s[1] == pytest.approx((3e-5 * 4 + RANK_S) / 0.25)


@pytest.mark.parametrize("engine", ["vllm", "local"])
def test_costs_of_serving_are_those_of_the_profile(engine: str) -> None:
    workload = Serving(1.0, 64, 32)
    found = profile(POINTS if engine == "vllm" else separate(), engine)
    costs = derive_costs(GRAPH, two_cpus(), workload, parse_precisions("16"), "bfloat16", engine, profile=found)
    assert costs.provenance.startswith("measured")
    mean = costs.phase("decode", 8)
    step = Step(8, 80, 16 / 64, 64.0, 64)
    for index, speed in enumerate((0.5, 0.25)):
        slow = replace(CPU, speed=speed)
        assert mean.layer_s[0][index][0] == pytest.approx(found.layer_s(slow, GRAPH.kinds[0], SIXTEEN, step))
        assert (mean.first_s[index], mean.last_s[index]) == pytest.approx(found.ends_s(slow, GRAPH, step))
