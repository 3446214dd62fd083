"""Plans of tensor-parallel groups: against enumeration over groups, orders, partitions and options; files, verifier, notices."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmpq.costs.serving
from llmpq.answers.explanation import explain
from llmpq.answers.subject import Subject, program_of
from llmpq.costs.kv_blocks import kv_blocks
from llmpq.costs.shard import shard
from llmpq.costs.table import micro_batch_sizes
from llmpq.errors import InputError, TimeLimitError
from llmpq.hardware.cluster import Cluster
from llmpq.options import Options
from llmpq.plan import Plan
from llmpq.planning import group_search
from llmpq.planning.candidates import Candidate
from llmpq.planning.costing import on_groups, on_groups_of
from llmpq.planning.joint import joint_plan
from llmpq.planning.stage_seconds import stage_seconds
from llmpq.precision import parse_precisions
from llmpq.printing import format_plan
from llmpq.program import Program, Request, Target
from llmpq.sensitivity import prior
from llmpq.serialize import dumps, loads
from llmpq.simulation.planned import StageTimes
from llmpq.solver.rules import parse_rules
from llmpq.verify import plan_problems
from llmpq.workload import Batch, Serving, Workload
from tests.random_programs import GAP, every_order, feasible, with_costs, with_sensitivity
from tests.test_replica_search import sizes
from tests.values import llama_graph, llama_kind

SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmpq.costs.serving, "MOST_SEQUENCES", 3)


def cluster_of(rng: random.Random, count: int) -> Cluster:
    """CPUs of one or two sorts on one or two hosts, all links fast or slow."""
    sorts = [f"type: CPU, memory: {rng.randint(3, 9)} MiB, speed: {rng.choice((0.5, 1))}" for _ in range(2)]
    devices = [f"  - {{{rng.choice(sorts)}, host: {rng.choice('aab')}}}" for _ in range(count)]
    within = rng.choice(("200 GB/s, latency: 1 us", "2 GB/s, latency: 10 us", "0.1 GB/s, latency: 1 ms"))
    links = f"links:\n  within_host: {{bandwidth: {within}}}\n  between_hosts: {{bandwidth: 0.2 GB/s, latency: 200 us}}"
    return Cluster.from_yaml("\n".join(["name: random", "devices:", *devices, links]), "random.yaml")


def random_request(seed: int, workload: Workload, count: int = 4, replicas: int = 1) -> Program:
    """Two layers of hidden size 512, whose heads are split up to four times; quality demands bits one time in two."""
    rng = random.Random(seed)
    kinds = (llama_kind(512, kv_heads=4, ffn=rng.choice((384, 512)), head_dim=128),)
    graph = replace(llama_graph(2, hidden=512), kinds=kinds)
    target = Target(budget=rng.choice((None, rng.uniform(0.3, 1) * graph.num_layers)))
    precisions = parse_precisions(rng.choice(("16,w4a16", "16,w8a8")))
    cluster = cluster_of(rng, count)
    asked = (cluster, workload, precisions, target, (), "vllm", GAP, 60.0, replicas, 8)
    return with_sensitivity(with_costs(Program(graph, Request(*asked))), rng)


def best_of_all(program: Program) -> float | None:
    """The least objective of any pipeline of single devices, or of groups of two or of four, a micro-batch for each stage."""
    places = (found for ranks in (1, 2, 4) if (found := on_groups(program, ranks)) is not None)
    return min((objective for place in places for objective in objectives(place)), default=None)


def objectives(program: Program) -> Iterator[float]:
    """Of every order, every number of stages, every size of micro-batches and every assignment."""
    workload, devices = program.request.workload, len(program.request.cluster.devices)
    assert isinstance(workload, Batch)
    for order in every_order(program):
        for stages in range(1, len(order) + 1):
            for prefill, decode in micro_batch_sizes(workload, devices):
                if decode == -(-workload.batch_size // stages):
                    candidate = Candidate(order, prefill, decode, stages)
                    found = feasible(program, candidate, program.request.target.budget)
                    yield from (cost.objective for chosen, cost in found if len(set(chosen.device)) == stages)


def check(program: Program, expected: float) -> Plan:
    plan: Plan = joint_plan(program).require("plan")
    found = plan.optimality
    assert abs(found.objective - expected) <= 3 * GAP * expected
    assert found.bound is not None and found.bound <= expected * (1 + 1e-9)
    assert found.proven
    assert plan_problems(plan, program) == []
    assert loads(Plan, dumps(plan)) == plan
    assert plan.cluster == program.request.cluster
    return plan


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_a_batch_is_planned_as_the_best_of_all_groups_orders_partitions_and_options(seed: int) -> None:
    program = random_request(seed, Batch(random.Random(seed).choice((1, 2)), 16, 8))
    expected = best_of_all(program)
    if expected is not None:
        check(program, expected)


QUAD = """
name: quad
devices:
  - {type: CPU, count: 4, memory: 8 MiB, speed: 0.5, host: a}
links:
  within_host: {bandwidth: %s, latency: %s}
"""


def quad(workload: Workload, fast: bool = True, replicas: int = 1, rules: tuple[str, ...] = (), engine: str = "vllm") -> Program:
    """Four CPUs of a host that are alike, over links that make groups worth while or not."""
    program = random_request(1, workload)
    cluster = Cluster.from_yaml(QUAD % (("1000 GB/s", "0 us") if fast else ("0.01 GB/s", "10 ms")), "quad.yaml")
    kinds = (llama_kind(512, kv_heads=4, ffn=512, head_dim=128),)
    request = replace(program.request, cluster=cluster, target=Target(None), replicas=replicas, engine=engine)
    request = replace(request, rules=parse_rules(rules), tensor_parallel=8 if engine == "vllm" else 1)
    graph = replace(program.graph, kinds=kinds)
    return replace(with_costs(Program(graph, request)), sensitivity=prior(graph, request.precisions))


def planned(program: Program) -> Plan:
    plan: Plan = joint_plan(program).require("plan")
    assert plan_problems(plan, program) == []
    return plan


def test_one_sequence_is_generated_by_all_devices_where_links_are_fast_and_by_one_where_they_are_slow() -> None:
    fast, slow = planned(quad(Batch(1, 16, 8))), planned(quad(Batch(1, 16, 8), fast=False))
    assert [stage.device for stage in fast.stages] == ["CPU:0+CPU:1+CPU:2+CPU:3"]
    assert (fast.ranks, slow.ranks) == (4, 1)
    assert fast.tokens_per_s > slow.tokens_per_s


def test_serving_uses_groups_too_and_its_blocks_are_those_of_each_rank() -> None:
    program = quad(Serving(1.0, 16, 4))
    plan = planned(program)
    assert plan.ranks > 1
    blocks, part = kv_blocks(plan, program.graph), shard(program.graph, plan.ranks)
    assert blocks.block_bytes[0] == 32 * len(plan.stages[0].layers) * part.kinds[0].kv_bytes_per_token
    capacity = program.request.cluster.devices[0].capacity_bytes
    assert all(memory.total <= memory.capacity == capacity for memory in plan.prediction.memory)


def test_no_group_is_larger_than_asked_for() -> None:
    program = quad(Batch(1, 16, 8))
    found = [planned(replace(program, request=replace(program.request, tensor_parallel=most))).ranks for most in (1, 2, 3, 4, 8)]
    assert found == [1, 2, 2, 4, 4]


def test_a_time_limit_that_nothing_keeps_is_told_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    program = quad(Serving(1.0, 16, 4))

    def late(program: Program, **given: object) -> None:
        raise TimeLimitError("no plan was found within a share of it")

    monkeypatch.setattr(group_search, "search_or_explain", late)
    short = replace(program, request=replace(program.request, time_limit_s=1e-6))
    with pytest.raises(TimeLimitError, match=r"within 1e-06 s; give more time with --time-limit"):
        group_search.search_groups(short)


def test_replicas_may_be_groups() -> None:
    """Two pairs hold the model more often than four single devices do, and serve more than one group of four."""
    program = quad(Serving(1.0, 16, 4), replicas=8)
    plan = planned(program)
    single = planned(replace(program, request=replace(program.request, replicas=1)))
    alone = planned(replace(program, request=replace(program.request, tensor_parallel=1)))
    assert plan.tokens_per_s >= max(single.tokens_per_s, alone.tokens_per_s) * (1 - 1e-9)
    assert plan.optimality.bound is not None and plan.optimality.bound <= min(
        single.optimality.objective, alone.optimality.objective
    )


def test_seconds_of_stages_are_those_that_the_planner_charged() -> None:
    program = quad(Batch(1, 16, 8))
    plan = planned(program)
    seconds = stage_seconds(plan, program.graph)
    assert sum(seconds.prefill) == pytest.approx(plan.prediction.prefill_s)
    assert 7 * (sum(seconds.decode) + sum(seconds.decode_link)) == pytest.approx(plan.prediction.decode_s)


def test_the_simulator_charges_what_the_ranks_send() -> None:
    program = quad(Serving(1.0, 16, 4))
    plan = planned(program)
    part = shard(program.graph, plan.ranks)
    times, without = StageTimes(plan, part, "vllm"), StageTimes(plan, program.graph, "vllm")
    group = plan.cluster.device(plan.stages[0].device)
    assert times._device(plan.stages[0]) == group
    assert times.graph.kinds[0].ops.ops != without.graph.kinds[0].ops.ops


def test_questions_are_asked_of_the_groups_of_the_plan() -> None:
    program = quad(Batch(1, 16, 8))
    plan = planned(program)
    subject = Subject.of(program_of(program.graph, plan, program.sensitivity))
    assert subject.evaluation.objective == pytest.approx(plan.optimality.objective)
    again = subject.solved()
    assert again is not None and again.optimality.objective <= plan.optimality.objective * (1 + 1e-9)


def test_the_printing_names_every_device_of_a_group() -> None:
    assert "CPU:0+CPU:1+CPU:2+CPU:3: layers 0-1" in format_plan(planned(quad(Batch(1, 16, 8))))


def test_a_constraint_that_names_a_device_leaves_it_single_and_says_so() -> None:
    program = joint_plan(quad(Batch(1, 16, 8), rules=("device('CPU:1').layers <= 1",)))
    assert program.require("plan").ranks == 1
    assert any("constraints name CPU:1, so every stage is a single device" in notice for notice in program.notices)


def test_a_model_whose_heads_do_not_divide_is_told() -> None:
    program = quad(Batch(1, 16, 8))
    graph = replace(program.graph, kinds=(llama_kind(512, kv_heads=3, ffn=512, head_dim=128),))
    planned = joint_plan(with_costs(replace(program, graph=graph, costs=None)))
    assert any("no tensor-parallel groups: layer-0 has 4 heads and 3 for keys" in notice for notice in planned.notices)


def test_groups_of_a_plan_are_refused_for_an_engine_that_has_none() -> None:
    plan = planned(quad(Batch(1, 16, 8)))
    with pytest.raises(InputError, match="engine local takes one size for all stages, of 1"):
        on_groups_of(quad(Batch(1, 16, 8), engine="local"), plan)


def test_an_engine_without_groups_refuses_to_be_asked_for_them() -> None:
    assert Options(engine="vllm").group_size == 8
    assert Options(engine="local").group_size == 1
    with pytest.raises(InputError, match="--tensor-parallel 2: engine local splits no layers; use --engine vllm"):
        Options(engine="local", tensor_parallel=2)
    with pytest.raises(InputError, match="--tensor-parallel is 9"):
        Options(engine="vllm", tensor_parallel=9)


def test_a_device_in_two_stages_is_found_within_groups() -> None:
    program = quad(Batch(1, 16, 8))
    plan = planned(program)
    first = replace(plan.stages[0], device="CPU:0+CPU:1", options=plan.stages[0].options[:1])
    second = replace(first, device="CPU:1+CPU:2", first_layer=1)
    broken = replace(plan, pipelines=(replace(plan.pipeline, stages=(first, second)),))
    assert any("a device holds more than one stage" in problem for problem in plan_problems(broken, program))


def test_serving_candidates_of_groups_are_the_steps_of_fewer_devices() -> None:
    program = quad(Serving(1.0, 16, 4))
    pairs = on_groups(program, 2)
    assert pairs is not None
    assert {in_flight for _, _, in_flight in sizes(pairs)} == {2}


def test_a_device_of_a_group_is_explained_by_its_group() -> None:
    program = quad(Batch(1, 16, 8))
    asked = program_of(program.graph, planned(program), program.sensitivity)
    found = explain(asked, device="CPU:2", time_limit_s=1.0)
    assert [stage.device for stage in found.stages] == ["CPU:0+CPU:1+CPU:2+CPU:3"]
    assert {price.device for price in found.prices} == {"CPU:0+CPU:1+CPU:2+CPU:3"}
    assert found.idle == ()
