"""llmpq simulate: requests by a plan, at full load what the plan says, and clear errors."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmpq.cli import cli
from llmpq.errors import InputError
from llmpq.simulation.percentiles import service
from llmpq.simulation.planned import simulate_plan
from llmpq.simulation.requests import Request, poisson
from llmpq.simulation.simulator import Run

PLAN = ("qwen2.5-7b", "--cluster", "1xA100-80,1xL4", "--engine", "vllm", "--time-limit", "20")


def simulate(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *PLAN, *arguments], catch_exceptions=True)


@pytest.fixture(scope="module")
def saturated() -> tuple[Run, float, float]:
    """A run at twice the capacity, and the planned tokens per second and seconds per token."""
    from llmpq.compiler import plan
    from llmpq.workload import Serving

    program = plan(PLAN[0], "1xA100-80,1xL4", Serving(100.0, 512, 100), engine="vllm", time_limit_s=20.0)
    load = program.require("plan").prediction.load
    requests = poisson(2 * load.requests_per_s, 512, 100, 4 * load.running, seed=3)
    return simulate_plan(program.require("plan"), program.graph, "vllm", requests), load.tokens_per_s, load.tpot_s


def test_at_full_load_a_token_takes_what_was_planned(saturated: tuple[Run, float, float]) -> None:
    run, _, tpot_s = saturated
    tpot = service(run).tpot
    assert tpot is not None
    assert tpot.p50 == pytest.approx(tpot_s, rel=0.25)


def test_a_pipeline_serves_no_more_than_was_planned(saturated: tuple[Run, float, float]) -> None:
    run, tokens_per_s, _ = saturated
    assert 0.5 * tokens_per_s < run.tokens_per_s < 1.1 * tokens_per_s


def test_the_command_prints_percentiles_beside_the_plan_and_a_gantt_chart(tmp_path: Path) -> None:
    gantt = tmp_path / "gantt.json"
    result = simulate("--rate", "1", "--gen-len", "20", "--requests", "20", "--tpot", "1", "--json", "--gantt", str(gantt))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["simulated"]["requests"] == 20
    assert found["simulated"]["ttft"]["p50"] <= found["simulated"]["ttft"]["p99"]
    assert found["planned"]["running"] >= found["simulated"]["peak_running"]
    spans = json.loads(gantt.read_text())
    assert {span["stage"] for span in spans} == set(range(len(found["simulated"]["busy"])))


def test_a_trace_is_served_request_by_request(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,5\n0.5,200,10\n9,50,1\n")
    result = simulate("--trace", str(trace))
    assert result.exit_code == 0, result.output
    assert "3 requests" in result.stdout
    assert "whole answer" in result.stdout


def test_a_batch_on_another_engine_than_ours_is_not_replayed() -> None:
    result = simulate("--batch-size", "4")
    assert isinstance(result.exception, InputError)
    assert "give --rate, or a --trace of requests" in str(result.exception)


def test_a_plan_for_a_batch_has_no_load() -> None:
    from llmpq.compiler import plan
    from llmpq.workload import Batch

    program = plan(PLAN[0], "1xA100-80", Batch(2, 64, 8), engine="vllm")
    with pytest.raises(InputError, match="the plan is for one batch"):
        simulate_plan(program.require("plan"), program.graph, "vllm", [Request(0.0, 10, 2)])
