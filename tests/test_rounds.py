"""Rounds: a batch that queues: what is charged for it, what it keeps in memory, and who is told."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.backends.simulator import SimulatorBackend
from llmpq.costs import kv_cache_bytes
from llmpq.errors import InfeasibleError
from llmpq.export.vllm_settings import vllm_settings
from llmpq.plan import Plan
from llmpq.planning.candidates import Candidate, build_problem, candidate_groups
from llmpq.planning.joint import costed, joint_plan
from llmpq.planning.rounds import in_rounds
from llmpq.planning.search import search
from llmpq.printing import format_sizes
from llmpq.program import Program, Target
from llmpq.runtime.spec import pipeline_spec
from llmpq.sensitivity import prior
from llmpq.serialize import dumps, loads
from llmpq.verify import plan_problems
from llmpq.workload import Batch, resident_sizes
from tests.random_programs import GAP, random_program, with_costs
from tests.values import llama_graph, program, two_cpus

TIGHT = two_cpus("1 MiB", "1 MiB")  # for the weights at 4 bits and a part of the cache


def queueing(workload: Batch, queue: bool = True, engine: str = "local") -> Program:
    plain = program(llama_graph(4), TIGHT, workload, "w8a16,w4a16", Target(None))
    asked = replace(plain, request=replace(plain.request, queue=queue, engine=engine, gap=1e-6))
    return replace(costed(asked), sensitivity=prior(asked.graph, asked.request.precisions))


def planned(workload: Batch, engine: str = "local") -> Plan:
    found: Plan = joint_plan(queueing(workload, engine=engine)).require("plan")
    return found


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(1, (1,)), (2, (2, 1)), (3, (3, 2, 1)), (16, (16, 8, 6, 4, 2, 1)), (33, (33, 17, 11, 9, 5, 3, 2, 1))],
)
def test_a_batch_is_halved_cut_in_three_and_then_halved_again(batch_size: int, sizes: tuple[int, ...]) -> None:
    assert resident_sizes(batch_size) == sizes


def test_nothing_queues_unless_asked_to() -> None:
    assert {group.resident for group in candidate_groups(queueing(Batch(8, 16, 8), queue=False))} == {None}
    found = candidate_groups(queueing(Batch(8, 16, 8)))
    assert {group.resident for group in found} == {None, 4, 3, 2, 1}
    assert all(group.decode_micro_batch <= (group.resident or 8) for group in found)


def test_rounds_cost_as_often_what_one_costs_and_keep_the_cache_of_one() -> None:
    several = build_problem(queueing(Batch(8, 16, 8)), Candidate((1, 0), 1, 2, resident=3), None)
    one = build_problem(queueing(Batch(3, 16, 8), queue=False), Candidate((1, 0), 1, 2), None)
    assert several == in_rounds(one, 3)
    assert several.decode_s[0][0][0] == 3 * (one.decode_s[0][0][0] or 0)
    assert several.layer_bytes == one.layer_bytes


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_best_number_at_once_is_found(seed: int) -> None:
    """Against a search of its own for each number."""
    ready = random_program(seed, Target(budget=None))
    workload = ready.request.workload
    assert isinstance(workload, Batch)
    found = search(with_costs(replace(ready, request=replace(ready.request, queue=True))), None)
    expected = []
    for size in resident_sizes(workload.batch_size):
        alone = with_costs(replace(ready, request=replace(ready.request, workload=replace(workload, batch_size=size))))
        best = search(alone, None)
        expected += [] if best is None else [best.objective * -(-workload.batch_size // size)]
    assert (found is None) == (not expected)
    if found is not None:
        assert found.objective == pytest.approx(min(expected), rel=2 * GAP)
        assert found.proven


def test_a_batch_that_does_not_fit_at_once_is_planned_in_rounds_and_told() -> None:
    workload = Batch(64, 64, 32)
    with pytest.raises(InfeasibleError):
        joint_plan(queueing(workload, queue=False))
    plan = planned(workload)
    assert plan.pipeline.resident is not None
    assert plan.batch == replace(workload, batch_size=plan.pipeline.resident)
    assert plan.rounds == -(-64 // plan.pipeline.resident) > 1
    assert format_sizes(plan).endswith(f"resident {plan.pipeline.resident} of 64, {plan.rounds} rounds")
    assert plan_problems(plan, queueing(workload)) == []
    for stage, memory in zip(plan.stages, plan.prediction.memory):
        assert memory.kv_cache == sum(kv_cache_bytes(llama_graph(4).kind_of(i), plan.batch) for i in stage.layers)


def test_more_at_once_than_there_are_is_a_problem_of_the_plan() -> None:
    plan = planned(Batch(64, 64, 32))
    wrong = replace(plan, pipelines=(replace(plan.pipeline, resident=65),))
    assert any("65 sequences" in problem for problem in plan_problems(wrong, queueing(Batch(64, 64, 32))))


def test_the_engines_are_given_what_is_in_the_cache_at_once() -> None:
    plan = planned(Batch(64, 64, 32), "vllm")
    settings = vllm_settings(plan, llama_graph(4))
    assert settings.max_num_seqs == plan.pipeline.resident
    assert settings.kv_blocks >= settings.kv_blocks_needed
    assert pipeline_spec(plan, llama_graph(4)).workload == plan.batch


def test_the_simulator_repeats_the_round() -> None:
    plan = planned(Batch(64, 64, 32))
    run = SimulatorBackend(plan, llama_graph(4)).run()
    trip = plan.prediction.decode_s / plan.rounds / 31
    assert abs(run.seconds - plan.prediction.latency_s) <= plan.rounds * trip
    assert run.tokens_per_s == pytest.approx(64 * 32 / run.seconds)


def test_plans_on_disk_name_it_only_where_a_batch_queues() -> None:
    plan = planned(Batch(64, 64, 32))
    assert loads(Plan, dumps(plan), "plan") == plan
    assert '"resident"' in dumps(plan)
    assert '"resident"' not in dumps(planned(Batch(2, 16, 8)))


def test_vllm_decodes_a_micro_batch_for_each_stage() -> None:
    """It keeps as many batches in flight as the pipeline has ranks, and a request decodes once a trip."""
    groups = candidate_groups(queueing(Batch(8, 16, 8), queue=False, engine="vllm"))
    assert {(len(group.devices), group.in_flight, group.decode_micro_batch) for group in groups} == {(2, 2, 4), (1, 1, 8)}
    plan = planned(Batch(64, 64, 32), "vllm")
    assert plan.pipeline.decode_micro_batch == -(-plan.batch.batch_size // len(plan.stages))
