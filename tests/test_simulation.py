"""Simulation of continuous batching: closed forms where they are exact, conservation everywhere."""

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.simulation.percentiles import service
from llmpq.simulation.pipeline import Seconds
from llmpq.simulation.requests import Request, poisson, read_trace
from llmpq.simulation.scheduler import Policy, Scheduler, Sequence, StepShape, shape_of
from llmpq.simulation.simulator import simulate

PLENTY = Policy(max_num_seqs=1000, token_budget=100_000, kv_blocks=1_000_000)


def fixed(*seconds: float) -> Seconds:
    return lambda stage, step: seconds[stage]


def no_link(stage: int, step: StepShape) -> float:
    return 0.0


def test_one_request_on_one_stage_takes_a_step_per_token() -> None:
    run = simulate([Request(0.0, 100, 5)], PLENTY, 1, fixed(0.5), no_link)
    (served,) = run.served
    assert (served.ttft_s, served.latency_s, served.tpot_s) == (0.5, 2.5, 0.5)
    assert run.steps == 5


def test_a_request_decodes_once_per_trip_through_the_pipeline() -> None:
    run = simulate([Request(0.0, 10, 11)], PLENTY, 3, fixed(0.1, 0.2, 0.3), fixed(0.01, 0.01, 0.02))
    assert run.served[0].tpot_s == pytest.approx(0.1 + 0.2 + 0.3 + 0.04)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("stages", [(0.1, 0.1, 0.1), (0.1, 0.4, 0.2), (0.05, 0.05, 0.5)])
def test_the_steady_state_is_the_closed_form_of_serving(stages: tuple[float, ...], overlap: bool) -> None:
    """K balanced batches of d sequences: C = max(sum (tau + l), K max(tau, l))."""
    links, num_stages, per_batch = (0.03, 0.02, 0.04), len(stages), 4
    requests = [Request(0.0, 8, 400)] * (num_stages * per_batch)
    policy = Policy(1000, token_budget=8 * per_batch, kv_blocks=100_000)
    run = simulate(requests, policy, num_stages, fixed(*stages), fixed(*links), overlap=overlap)
    if overlap:
        cycle = max(sum(stages) + sum(links), num_stages * max(*stages, *links))
    else:
        cycle = max(sum(stages) + sum(links), num_stages * max(t + link for t, link in zip(stages, links)))
    for served in run.served:
        assert served.tpot_s == pytest.approx(cycle, rel=1e-9)


def test_a_token_budget_that_takes_all_prompts_at_once_leaves_the_pipeline_unbalanced() -> None:
    requests = [Request(0.0, 8, 50)] * 8
    one, spread = (
        simulate(requests, Policy(1000, budget, 1000), 2, lambda _, step: 0.01 * step.tokens, no_link) for budget in (64, 32)
    )
    assert max(one.busy) < 0.55 < 0.9 < min(spread.busy)


def test_prompts_are_cut_into_chunks_by_the_budget() -> None:
    scheduler = Scheduler(Policy(10, token_budget=10, kv_blocks=100))
    scheduler.add(Sequence(Request(0.0, 25, 2), 0))
    sizes = []
    for _ in range(3):
        chunks = scheduler.step()
        sizes.append([(chunk.tokens, chunk.context, chunk.samples) for chunk in chunks])
        scheduler.finish_step(chunks)
    assert sizes == [[(10, 10, False)], [(10, 20, False)], [(5, 25, True)]]
    assert shape_of(scheduler.step()) == StepShape(0, 0, 1, 26, 1)


def test_chunks_of_one_prompt_follow_each_other_without_waiting() -> None:
    run = simulate([Request(0.0, 20, 1)], Policy(10, 10, 100), 2, fixed(1.0, 1.0), no_link)
    assert run.served[0].ttft_s == 3.0


def test_pairs_of_a_chunk_are_those_of_causal_attention() -> None:
    scheduler = Scheduler(Policy(10, token_budget=3, kv_blocks=100))
    scheduler.add(Sequence(Request(0.0, 5, 1), 0))
    first, second = shape_of(scheduler.step()), shape_of(scheduler.step())
    assert (first.prefill_pairs, second.prefill_pairs) == (1 + 2 + 3, 4 + 5)


def test_running_goes_before_waiting_and_first_come_is_first_served() -> None:
    scheduler = Scheduler(Policy(max_num_seqs=2, token_budget=6, kv_blocks=100))
    for number in range(3):
        scheduler.add(Sequence(Request(0.0, 5, 3), number))
    first = scheduler.step()
    assert [(chunk.sequence.number, chunk.tokens) for chunk in first] == [(0, 5), (1, 1)]
    scheduler.finish_step(first)
    second = scheduler.step()
    assert [(chunk.sequence.number, chunk.tokens) for chunk in second] == [(0, 1), (1, 4)]


def test_a_request_that_came_last_gives_way_when_the_cache_is_full() -> None:
    run = simulate([Request(0.0, 16, 40), Request(0.0, 16, 40)], Policy(10, 100, kv_blocks=5), 1, fixed(1.0), no_link)
    first, second = run.served
    assert run.preemptions >= 1
    assert first.latency_s == 40.0
    assert second.latency_s > first.latency_s


def test_a_request_that_never_fits_is_an_error() -> None:
    with pytest.raises(InputError, match="needs 7 KV blocks; the plan has 6"):
        simulate([Request(0.0, 90, 10)], Policy(10, 100, kv_blocks=6), 1, fixed(1.0), no_link)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.builds(Request, st.floats(0, 5, allow_nan=False), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12
    ),
    policy=st.builds(Policy, st.integers(1, 6), st.integers(1, 50), st.integers(4, 12)),
    num_stages=st.integers(1, 3),
)
def test_every_request_is_served_whole_within_budget_and_slots(requests: list[Request], policy: Policy, num_stages: int) -> None:
    seen: list[int] = []

    def seconds(stage: int, step: StepShape) -> float:
        assert 0 < step.tokens <= policy.token_budget
        if stage == 0:
            seen.append(step.sampled)
        return 0.01 + 0.001 * step.tokens

    run = simulate(requests, policy, num_stages, seconds, no_link)
    assert sorted((r.prompt_len, r.gen_len) for r in requests) == sorted(
        (s.request.prompt_len, s.request.gen_len) for s in run.served
    )
    assert sum(seen) == sum(request.gen_len for request in requests)
    assert run.peak_running <= policy.max_num_seqs
    for served in run.served:
        assert 0 < served.ttft_s <= served.latency_s


def test_more_memory_never_adds_preemptions_to_none() -> None:
    requests = poisson(20.0, 30, 20, 40, seed=1)
    runs = [simulate(requests, Policy(32, 256, blocks), 2, fixed(0.01, 0.01), no_link) for blocks in (10, 1000)]
    assert runs[0].preemptions > runs[1].preemptions == 0


def test_spans_of_a_stage_do_not_overlap() -> None:
    run = simulate(poisson(50.0, 20, 10, 20), PLENTY, 3, fixed(0.01, 0.02, 0.01), no_link, keep_spans=10_000)
    for stage in range(3):
        spans = sorted((span for span in run.spans if span.stage == stage), key=lambda span: span.start_s)
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in pairwise(spans))


def test_the_report_names_percentiles() -> None:
    report = service(simulate([Request(0.0, 10, 1), Request(0.0, 10, 3)], Policy(1, 100, 10), 1, fixed(1.0), no_link))
    assert (report.ttft.p50, report.latency.mean, report.tpot.p99 if report.tpot else None) == (1.5, 2.5, 1.0)
    assert report.tokens_per_s == 1.0


def test_public_traces_are_read_by_their_own_column_names(tmp_path: Path) -> None:
    path = tmp_path / "conv.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("arrived_at,num_prefill_tokens,num_decode_tokens\n5.5,100,10\n5.0,20,3\n6.0,7,1\n")
    assert read_trace(path) == (Request(0.0, 20, 3), Request(0.5, 100, 10), Request(1.0, 7, 1))
    assert len(read_trace(path, limit=2)) == 2
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"arrival_s": 1, "prompt_len": 4, "gen_len": 2}\n')
    assert read_trace(lines) == (Request(0.0, 4, 2),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no requests"),
        ("arrived_at,tokens\n1,2\n", "line 2: none of the columns num_prefill_tokens"),
        ("arrived_at,prompt_len,gen_len\nx,2,3\n", "line 2, column arrived_at: found 'x', expected a number"),
        ("arrived_at,prompt_len,gen_len\n1,2,0\n", "expected at least 1 each"),
    ],
)
def test_a_bad_trace_names_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(path)
