"""Plans of several pipelines against enumeration over every set of disjoint sets of devices, for batches and for serving."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations, permutations, product
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmpq.costs.serving
import llmpq.planning.shares
import llmpq.planning.teams
from llmpq.costs import CostTable
from llmpq.costs.table import micro_batch_sizes
from llmpq.hardware.cluster import Cluster
from llmpq.plan import SERVED_TOKENS, Plan
from llmpq.planning.candidates import Candidate
from llmpq.planning.joint import joint_plan
from llmpq.planning.option_sets import option_sets
from llmpq.planning.search import search
from llmpq.planning.shares import share_sizes
from llmpq.precision import parse_precisions
from llmpq.printing import format_plan
from llmpq.program import Program, Request, Target
from llmpq.serialize import dumps, loads
from llmpq.solver.rules import parse_rules
from llmpq.verify import plan_problems
from llmpq.workload import Batch, Serving, Workload
from tests.random_programs import GAP, feasible, random_cluster, random_graph, with_costs, with_sensitivity

SEEDS = st.integers(0, 10**6)
Devices = tuple[int, ...]
Cost = Callable[[Devices, int], float]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmpq.costs.serving, "MOST_SEQUENCES", 3)


def random_request(seed: int, workload: Workload, replicas: int = 8, rules: tuple[str, ...] = ()) -> Program:
    """2-3 layers on 2-3 CPUs, of which one to three hold the model alone."""
    rng = random.Random(seed)
    graph = random_graph(rng)
    target = Target(budget=rng.choice((None, rng.uniform(0.3, 1) * graph.num_layers)))
    precisions = parse_precisions(rng.choice(("16,w4a16", "w8a16,w4a16")))
    request = Request(
        random_cluster(rng), workload, precisions, target, parse_rules(rules), gap=GAP, time_limit_s=60.0, replicas=replicas
    )
    return with_sensitivity(with_costs(Program(graph, request)), rng)


def on(program: Program, devices: Devices, workload: Workload) -> Program:
    """The program of these devices alone, costed again."""
    cluster = program.request.cluster
    kept = Cluster("part", tuple(cluster.devices[j] for j in devices), cluster.within_host, cluster.between_hosts, ())
    return with_costs(replace(program, request=replace(program.request, cluster=kept, workload=workload, rules=()), costs=None))


def sizes(program: Program) -> Iterator[tuple[int, int, int | None]]:
    workload, count = program.request.workload, len(program.request.cluster.devices)
    if isinstance(workload, Batch):
        yield from ((*pair, None) for pair in micro_batch_sizes(workload, count))
    else:
        costs: CostTable = program.require("costs")
        yield from ((step.token_budget, step.sequences, count) for step in costs.steps)


def least(program: Program) -> float:
    """The least objective of a pipeline that uses all devices of the program."""
    devices = range(len(program.request.cluster.devices))
    return min(
        (
            evaluation.objective
            for order, size in product(permutations(devices), sizes(program))
            for options in option_sets(program, *size[:2])
            for assignment, evaluation in feasible(
                program, Candidate(order, *size, options=options), program.request.target.budget
            )
            if len(set(assignment.device)) == len(devices)
        ),
        default=inf,
    )


def disjoint(devices: Devices, most: int) -> Iterator[tuple[Devices, ...]]:
    """Every set of at most `most` disjoint sets of devices, the empty one included."""
    yield ()
    if most and devices:
        first, *others = devices
        yield from disjoint(tuple(others), most)
        for size in range(len(others) + 1):
            for chosen in combinations(others, size):
                left = tuple(j for j in others if j not in chosen)
                yield from (((first, *chosen), *rest) for rest in disjoint(left, most - 1))


def best_of_all(program: Program) -> float:
    """The least objective of any pipelines, each of the best plan of its devices."""
    workload, replicas = program.request.workload, program.request.replicas
    devices = tuple(range(len(program.request.cluster.devices)))

    @cache
    def cost(chosen: Devices, share: int) -> float:
        return least(on(program, chosen, replace(workload, batch_size=share) if isinstance(workload, Batch) else workload))

    sets = [chosen for chosen in set(disjoint(devices, replicas)) if chosen]
    if isinstance(workload, Serving):
        rates = max(sum(1.0 / cost(part, 0) for part in chosen) for chosen in sets)
        return 1.0 / rates if rates else inf
    return min(makespan(chosen, workload.batch_size, cost) for chosen in sets)


def makespan(parts: tuple[Devices, ...], batch_size: int, cost: Cost) -> float:
    """The least time of the slowest, over all sizes that they may be planned for."""
    planned = product(share_sizes(batch_size), repeat=len(parts))
    return min(max(map(cost, parts, shares)) for shares in planned if sum(shares) >= batch_size)


def check(program: Program, expected: float) -> Plan:
    plan: Plan = joint_plan(program).require("plan")
    found = plan.optimality
    assert abs(found.objective - expected) <= 3 * GAP * expected
    assert found.bound is not None
    assert found.bound <= expected * (1 + 1e-9)
    assert found.proven
    assert plan_problems(plan, program) == []
    assert loads(Plan, dumps(plan)) == plan
    return plan


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.sampled_from((2, 3, 4)))
def test_a_batch_is_shared_out_as_the_best_of_an_enumeration(seed: int, batch_size: int) -> None:
    program = random_request(seed, Batch(batch_size, 16, 8))
    if search(program, program.request.target.budget) is not None:
        check(program, best_of_all(program))


@settings(max_examples=12, deadline=None)
@given(SEEDS)
def test_replicas_serve_as_much_as_the_best_of_an_enumeration(seed: int) -> None:
    program = random_request(seed, Serving(1.0, 16, 4))
    if search(program, program.request.target.budget) is not None:
        check(program, best_of_all(program))


TWINS = """
name: twins
devices:
  - {type: CPU, count: 3, memory: 4 MiB, speed: 0.5, host: a}
  - {type: CPU, memory: 4 MiB, speed: 0.25, host: b}
"""


def twins(workload: Workload, *rules: str, replicas: int = 8) -> Program:
    """Four CPUs that hold the model alone, three of them alike."""
    program = random_request(1, workload, replicas, rules)
    request = replace(program.request, cluster=Cluster.from_yaml(TWINS, "twins.yaml"), target=Target(None))
    return with_costs(replace(program, request=request, costs=None))


def test_four_devices_that_hold_the_model_are_four_replicas_when_serving() -> None:
    plan = joint_plan(twins(Serving(1.0, 16, 4))).require("plan")
    assert sorted(stage.device for pipeline in plan.pipelines for stage in pipeline.stages) == [
        "CPU:0",
        "CPU:1",
        "CPU:2",
        "CPU:3",
    ]
    weights = [pipeline.replica.weight for pipeline in plan.pipelines]
    assert weights == sorted(weights, reverse=True)
    rates = [one.load.tokens_per_s for one in plan.replicas]
    assert weights == pytest.approx([rate / sum(rates) for rate in rates])
    assert plan.tokens_per_s == pytest.approx(sum(rates))
    assert plan.optimality.objective == pytest.approx(SERVED_TOKENS / sum(rates))
    assert format_plan(plan).startswith("4 pipelines: ")


def test_no_more_pipelines_than_are_asked_for() -> None:
    speeds = [joint_plan(twins(Serving(1.0, 16, 4), replicas=most)).require("plan") for most in (1, 2, 3, 8)]
    assert [len(plan.pipelines) for plan in speeds] == [1, 2, 3, 4]
    assert [plan.tokens_per_s for plan in speeds] == sorted(plan.tokens_per_s for plan in speeds)


def test_a_batch_of_one_sequence_is_not_shared_out() -> None:
    plan = joint_plan(twins(Batch(1, 16, 8))).require("plan")
    assert len(plan.pipelines) == 1
    assert plan.pipeline.replica is None
    assert '"replica"' not in dumps(plan)
    assert plan.replicas == (plan,)


def test_sequences_of_all_replicas_are_the_batch() -> None:
    plan = joint_plan(twins(Batch(9, 16, 8))).require("plan")
    assert len(plan.pipelines) > 1
    shares = [pipeline.replica.weight * 9 for pipeline in plan.pipelines]
    assert shares == pytest.approx([round(share) for share in shares])
    assert sum(shares) == pytest.approx(9)
    assert all(share <= one.batch.batch_size + 1e-9 for share, one in zip(shares, plan.replicas))
    assert plan.prediction.latency_s == max(one.prediction.latency_s for one in plan.replicas)


def test_a_rule_holds_in_every_pipeline() -> None:
    plan = joint_plan(twins(Serving(1.0, 16, 4), "layers[0].device == 'CPU:3'")).require("plan")
    assert plan.stages[0].device == "CPU:3"
    plan = joint_plan(twins(Serving(1.0, 16, 4), "device('CPU:3').layers <= 0")).require("plan")
    assert len(plan.pipelines) == 3
    plan = joint_plan(twins(Serving(1.0, 16, 4), "count(w4a16) >= 2")).require("plan")
    assert all(one.options.count("w4a16") >= 2 for one in plan.replicas)


def test_of_too_many_sets_of_devices_those_that_were_not_looked_at_enter_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmpq.planning.teams, "MAX_TEAMS", 0)
    workloads: tuple[Serving | Batch, ...] = (Serving(1.0, 16, 4), Batch(3, 16, 8))
    for seed, workload in product(range(4), workloads):
        program = random_request(seed, workload)
        if search(program, program.request.target.budget) is None:
            continue
        expected, found = best_of_all(program), joint_plan(program).require("plan").optimality
        assert found.bound <= expected * (1 + 1e-9) <= found.objective * (1 + 1e-6)


def test_shares_of_a_large_batch_are_multiples_and_the_whole() -> None:
    assert share_sizes(5) == (1, 2, 3, 4, 5)
    assert share_sizes(100)[:3] == (4, 8, 12)
    assert share_sizes(101)[-2:] == (100, 101)
    assert len(share_sizes(4096)) == llmpq.planning.shares.MOST_SHARES
