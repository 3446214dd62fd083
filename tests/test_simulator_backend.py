"""The simulator backend: our engine's schedule and vLLM's policy in simulated time, against the closed forms."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llmpq.backend import PREDICTORS, load_predictor
from llmpq.backends.simulator import SimulatorBackend, replay
from llmpq.cli import cli
from llmpq.compiler import plan
from llmpq.errors import BackendError, InputError
from llmpq.planning.stage_seconds import StageSeconds
from llmpq.runtime.schedule import schedule
from llmpq.simulation.requests import poisson
from llmpq.workload import Batch, Serving

SECONDS = st.lists(st.floats(0.01, 10), min_size=3, max_size=3).map(tuple)


def slowest(stages: tuple[float, ...], links: tuple[float, ...]) -> float:
    return max(a + b for a, b in zip(stages, links))


@given(SECONDS, SECONDS, st.integers(1, 6))
def test_prefill_is_the_closed_form(stages: tuple[float, ...], links: tuple[float, ...], micro_batches: int) -> None:
    links = (*links[:-1], 0.0)
    run = replay(schedule(3, micro_batches, 1, 1, micro_batches), StageSeconds(stages, links, stages, links), Batch(1, 1, 1))
    expected = sum(stages) + sum(links) + (micro_batches - 1) * slowest(stages, links)
    assert run.seconds == run.prefill_s == pytest.approx(expected)


@given(SECONDS, SECONDS, st.integers(1, 6), st.integers(2, 6))
def test_decoding_is_the_closed_form(stages: tuple[float, ...], links: tuple[float, ...], batches: int, gen_len: int) -> None:
    run = replay(schedule(3, 0, batches, gen_len), StageSeconds(stages, links, stages, links), Batch(1, 1, gen_len))
    total, longest = sum(stages) + sum(links), slowest(stages, links)
    trip = max(total, batches * longest)
    assert run.seconds == pytest.approx((gen_len - 2) * trip + total + (batches - 1) * longest)


def test_one_stage_takes_what_the_plan_predicts_and_several_no_more_than_a_round_trip_less() -> None:
    for cluster, exact in (("1xL4", True), ("1xL4,1xT4", False)):
        program = plan("llama-3-8b", cluster, Batch(16, 256, 32), precisions="w8a16")
        made = program.require("plan")
        run = SimulatorBackend(made, program.graph).run()
        predicted, trip = made.prediction.latency_s, made.prediction.decode_s / 31
        assert run.seconds == pytest.approx(predicted) if exact else abs(run.seconds - predicted) <= trip
        assert all(0 < share <= 1 for share in run.busy)
        assert run.tokens_per_s == pytest.approx(16 * 32 / run.seconds)


def test_spans_of_a_stage_follow_one_another_and_every_action_is_there_once() -> None:
    program = plan("llama-3-8b", "1xL4,1xT4", Batch(8, 64, 4), precisions="w8a16")
    run = SimulatorBackend(program.require("plan"), program.graph).run()
    for stage in range(len(program.require("plan").stages)):
        spans = [span for span in run.spans if span.stage == stage]
        assert all(before.end_s <= after.start_s + 1e-12 for before, after in pairwise(spans))
        assert sum(span.action.startswith("D") for span in spans) % 3 == 0


def test_requests_are_served_by_a_plan_for_serving_and_by_no_other() -> None:
    serving = plan("llama-3-8b", "1xL4", Serving(rate_per_s=0.2, prompt_len=64, gen_len=16))
    simulator = SimulatorBackend(serving.require("plan"), serving.graph)
    assert len(simulator.serve(poisson(0.2, 64, 16, 20, 0)).served) == 20
    with pytest.raises(BackendError, match="the plan is for serving"):
        simulator.run()
    batch = plan("llama-3-8b", "1xL4", Batch(8, 64, 4))
    with pytest.raises(InputError, match="the plan is for one batch"):
        SimulatorBackend(batch.require("plan"), batch.graph).serve(poisson(0.2, 64, 16, 20, 0))


def test_it_is_found_by_its_name() -> None:
    assert load_predictor("simulator") is SimulatorBackend
    assert tuple(PREDICTORS) == ("simulator",)
    with pytest.raises(InputError, match="predictor 'oracle' is unknown; known are simulator"):
        load_predictor("oracle")


def test_llmpq_simulate_replays_a_batch(tmp_path: Path) -> None:
    chart = tmp_path / "spans.json"
    asked = "simulate llama-3-8b -c 1xL4,1xT4 --batch-size 8 --prompt-len 64 --gen-len 4 --json --gantt"
    found = CliRunner().invoke(cli, [*asked.split(), str(chart)])
    assert found.exit_code == 0, found.output
    simulated = json.loads(found.stdout)["simulated"]
    assert simulated["seconds"] > simulated["prefill_s"] > 0
    assert max(span["end_s"] for span in json.loads(chart.read_text())) == pytest.approx(simulated["seconds"])
