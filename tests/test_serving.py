"""Serving workloads: formulas, and the planned optimum against enumeration over sizes, orders and assignments."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, pairwise, permutations, product
from math import inf, isclose
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmpq.costs.serving
from llmpq.costs import CostTable, ServingStep
from llmpq.costs.latency import embedding_latency_s, head_latency_s
from llmpq.costs.op_latency import attention_s, of_batch, products_s, streams_s
from llmpq.errors import InfeasibleError, InputError
from llmpq.hardware.cluster import Cluster, Link
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import SERVED_TOKENS, Optimality, Plan
from llmpq.planning.bottleneck import bottleneck
from llmpq.planning.candidates import candidate_groups
from llmpq.planning.make_plan import make_plan
from llmpq.planning.orders import identical_devices, link_table
from llmpq.planning.quick_bounds import quick_bound
from llmpq.planning.search import Search, _Item, search
from llmpq.planning.space import EVERYTHING
from llmpq.precision import parse_precisions
from llmpq.printing import format_plan
from llmpq.program import Program, Request, Target
from llmpq.serialize import dumps, loads
from llmpq.simulation.requests import Request as Arrival
from llmpq.simulation.trace_workload import serving_of
from llmpq.verify import plan_problems
from llmpq.workload import KV_BLOCK, Serving
from tests.random_programs import random_cluster, random_graph, with_costs, with_sensitivity

SEEDS = st.integers(0, 10**6)
GAP = 1e-6
MOST = 4  # sequences of a step in these tests


def serving_program(seed: int, **limits: float) -> Program:
    """2-3 layers on 2-3 CPUs, a handful of steps, now and then a budget."""
    rng = random.Random(seed)
    graph = random_graph(rng)
    workload = Serving(1.0, rng.choice((4, 16)), rng.choice((4, 8)), **limits)  # type: ignore[arg-type]
    precisions = parse_precisions(rng.choice(("16,w4a16", "16,w8a16", "w8a16,w4a16")))
    target = Target(budget=rng.choice((None, rng.uniform(0, 1) * graph.num_layers)))
    request = Request(random_cluster(rng), workload, precisions, target, gap=GAP)
    return with_sensitivity(with_costs(Program(graph, request)), rng)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmpq.costs.serving, "MOST_SEQUENCES", MOST)


def plans(program: Program) -> Iterator[tuple[float, float, int, int]]:
    """(seconds of a trip, trips to the first token, running sequences, stages) of all that fits, from the formulas alone."""
    costs: CostTable = program.require("costs")
    cluster, kinds, links = program.request.cluster, program.graph.layer_kind, link_table(program.request.cluster)
    table, budget, workload = program.require("sensitivity"), program.request.target.budget, program.request.workload
    assert isinstance(workload, Serving)
    devices, options = range(len(cluster.devices)), range(len(costs.options))
    for step, stages in product(costs.steps, range(1, len(cluster.devices) + 1)):
        decode, full = costs.phase("decode", step.sequences), costs.phase("prefill", step.token_budget)
        running = step.sequences * stages
        blocks = workload.kv_blocks(running)
        for order in permutations(devices, stages):
            for places in combinations_with_replacement(range(stages), len(kinds)):
                if len(set(places)) < stages:
                    continue
                for chosen in product(options, repeat=len(kinds)):
                    lost = sum(table.rows[i][b] for i, b in enumerate(chosen))
                    if budget is not None and lost > budget * (1 + 1e-9):
                        continue
                    times, held = [0.0] * stages, [0] * stages
                    for kind, place, b in zip(kinds, places, chosen):
                        times[place] += decode.layer_s[kind][order[place]][b] or inf
                        held[place] += costs.layer_bytes[kind][b] + blocks * costs.kv_bytes[kind]
                    times[0] += decode.first_s[order[0]]
                    times[-1] += decode.last_s[order[-1]]
                    held[0] += costs.first_bytes
                    held[-1] += (costs.last_bytes_with_first if stages == 1 else costs.last_bytes) + decode.logits_bytes
                    room = [
                        cluster.devices[j].capacity_bytes - max(full.activation_bytes, decode.activation_bytes) for j in order
                    ]
                    if any(nbytes > most for nbytes, most in zip(held, room)):
                        continue
                    hops = [links[a][b].transfer_s(decode.hidden_bytes) for a, b in pairwise(order)]
                    back = [links[order[-1]][order[0]].transfer_s(step.sequences * 8)] if stages > 1 else [0.0]
                    stage_s = [own + hop for own, hop in zip(times, hops + back)]
                    yield max(sum(stage_s), stages * max(stage_s)), step.trips_to_first_token, running, stages


def planned(program: Program) -> Plan:
    found = search(program, program.request.target.budget)
    assert found is not None
    optimality = Optimality(found.objective, found.bound, found.proven, "test")
    return make_plan(program, found.candidate, found.problem, found.assignment, optimality, program.request.target.budget)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_the_planned_throughput_is_the_best_of_an_enumeration(seed: int) -> None:
    program = serving_program(seed)
    best = max((running / trip for trip, _, running, _ in plans(program)), default=None)
    if best is None:
        assert search(program, program.request.target.budget) is None
        return
    plan = planned(program)
    assert plan.optimality.proven
    assert isclose(plan.tokens_per_s, best, rel_tol=3 * GAP)
    assert plan.optimality.bound is not None
    assert plan.optimality.bound <= SERVED_TOKENS / best * (1 + 1e-9)
    assert plan_problems(plan, program) == []


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.floats(0.3, 3), st.floats(0.3, 3))
def test_the_limits_of_latency_are_kept_and_cost_no_more_throughput_than_they_must(seed: int, first: float, each: float) -> None:
    free = list(plans(serving_program(seed, ttft_s=1e9)))
    if not free:
        return
    fastest = min(trip for trip, _, _, _ in free)
    limits = {"ttft_s": first * min(trip * trips for trip, trips, _, _ in free), "tpot_s": each * fastest}
    program = serving_program(seed, **limits)
    kept = [r / trip for trip, trips, r, _ in plans(program) if trip <= limits["tpot_s"] and trip * trips <= limits["ttft_s"]]
    if not kept:
        with pytest.raises(InfeasibleError, match=r"no plan that fits keeps a ttft of .* s and a tpot of"):
            search(program, program.request.target.budget)
        return
    plan = planned(program)
    assert isclose(plan.tokens_per_s, max(kept), rel_tol=3 * GAP)
    assert plan_problems(plan, program) == []


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_quick_bounds_hold(seed: int) -> None:
    program = serving_program(seed)
    best: dict[int, float] = {}
    for trip, _, running, _ in plans(program):
        best[running] = min(best.get(running, inf), SERVED_TOKENS * trip / running)
    for group in candidate_groups(program):
        running = group.candidate().running
        alike = [other for other in candidate_groups(program) if other.candidate().running == running]
        least = min(quick_bound(program, other) for other in alike)
        assert least <= best.get(running, inf) * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_bottleneck_bounds_hold_for_every_order_and_are_met_where_links_cost_nothing(seed: int) -> None:
    program = serving_program(seed)
    program = replace(program, request=replace(program.request, cluster=without_links(program.request.cluster)))
    alike = len(program.graph.kinds) == 1 and len(set(program.require("sensitivity").rows)) == 1
    state = Search(program, program.request.target.budget, EVERYTHING, GAP, inf, identical_devices(program))
    best: dict[tuple[int, int], float] = {}
    for trip, _, running, stages in plans(program):
        best[running, stages] = min(best.get((running, stages), inf), SERVED_TOKENS * trip / running)
    for group in (group for group in candidate_groups(program) if (group.in_flight or 1) > 1):
        item = _Item("group", group, 0, group.candidate())
        found = bottleneck(state.problem(item), state.surroundings(item), group.in_flight or 1, inf)
        assert found is not None
        bound, least = found.bound(1e-2, inf), best.get((group.candidate().running, group.in_flight or 1), inf)
        assert bound <= least * (1 + 1e-9)
        assert not alike or (bound >= least * 0.99) or bound == least == inf
        if least < inf:
            assert found.bound(1e-2, least / 2) == least / 2


def without_links(cluster: Cluster) -> Cluster:
    free = Link(1e30, 0.0, "given")
    return replace(cluster, within_host=free, between_hosts=free)


def test_a_mixed_step_costs_its_linears_once_and_both_kinds_of_attention() -> None:
    program = serving_program(7)
    costs, graph, workload = program.require("costs"), program.graph, program.request.workload
    assert isinstance(workload, Serving)
    device, kind, precision = program.request.cluster.devices[0], graph.kinds[0], program.request.precisions[0]
    dtype, engine = program.require("compute_dtype"), program.request.engine
    for phase in costs.decode:
        prompts = phase.micro_batch / workload.gen_len  # finished per step, followed by as many prompts
        tokens = -(-phase.micro_batch * (workload.gen_len + workload.prompt_len) // workload.gen_len)
        mixed = of_batch(tokens, tokens, 1)
        linears = products_s(device, kind.ops, kind.linears, precision, mixed, dtype, engine)
        context = workload.prompt_len + workload.gen_len // 2
        decode = attention_s(device, kind.ops, None, phase.micro_batch, 1, context, dtype)
        prefill = attention_s(device, kind.ops, None, 1, workload.prompt_len, workload.prompt_len, dtype)
        streams = streams_s(device, kind.ops, mixed, dtype)
        expected = linears + decode + prompts * prefill + streams + device.type.overhead_s / device.speed
        assert isclose(phase.layer_s[0][0][0], expected, rel_tol=1e-12)
        assert phase.first_s[0] == embedding_latency_s(device, graph, tokens, dtype)
        rows = phase.micro_batch + -(-phase.micro_batch // workload.gen_len)
        assert phase.last_s[0] == head_latency_s(device, graph, rows, dtype)


def test_a_larger_budget_is_offered_only_where_the_first_token_comes_earlier() -> None:
    steps: dict[int, list[ServingStep]] = {}
    for step in serving_program(3, ttft_s=1.0).require("costs").steps:
        steps.setdefault(step.sequences, []).append(step)
    for several in steps.values():
        trips = [step.trips_to_first_token for step in sorted(several, key=lambda step: step.token_budget)]
        assert trips == sorted(set(trips), reverse=True)
    assert {len(several) for several in serving_steps_without_limit().values()} == {1}


def serving_steps_without_limit() -> dict[int, list[ServingStep]]:
    steps: dict[int, list[ServingStep]] = {}
    for step in serving_program(3).require("costs").steps:
        steps.setdefault(step.sequences, []).append(step)
    return steps


def test_blocks_hold_every_sequence_half_way_and_the_spread_of_the_sum() -> None:
    workload = Serving(1.0, 100, 60)
    assert workload.resident_tokens == 130
    rng = random.Random(0)
    for running in (4, 64):
        lives = [sum(100 + rng.random() * 60 for _ in range(running)) for _ in range(2000)]
        exceeded = sum(tokens > workload.kv_tokens(running) for tokens in lives) / len(lives)
        assert exceeded < 0.05
        assert workload.kv_tokens(running) < max(running * 160, 161) + 1
        assert workload.kv_blocks(running) * KV_BLOCK >= workload.kv_tokens(running) + running * KV_BLOCK / 2


def test_one_sequence_has_room_for_its_longest_request() -> None:
    assert Serving(1.0, 100, 60, longest=1000, cached_tokens=90.0).kv_tokens(1) == 1000


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.integers(1, 50), st.integers(1, 50)), min_size=2, max_size=6))
def test_a_trace_is_met_as_a_simulation_of_its_lives_meets_it(rows: list[tuple[float, int, int]]) -> None:
    requests = [Arrival(*row) for row in rows]
    workload = serving_of(requests, rate_per_s=2.0)
    parts = 64
    held = [r.prompt_len + (part + 0.5) / parts for r in requests for part in range(r.gen_len * parts)]
    assert isclose(workload.resident_tokens, fmean(held))
    assert workload.cached_tokens_std is not None
    assert isclose(workload.cached_tokens_std, pstdev(held), rel_tol=1e-3)
    assert workload.longest == max(request.prompt_len + request.gen_len for request in requests)


def test_the_rate_of_a_trace_is_its_own_or_the_one_that_was_asked_for() -> None:
    requests = [Arrival(float(i) / 4, 10, 20) for i in range(9)]
    assert serving_of(requests).rate_per_s == 4.0
    assert serving_of(requests, rate_per_s=1.0).rate_per_s == 1.0
    with pytest.raises(InputError, match="9 requests within 0 s; give a rate"):
        serving_of([replace(request, arrival_s=1.0) for request in requests])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rate_per_s": 0.0}, "rate_per_s"),
        ({"tpot_s": -1.0}, "tpot_s"),
        ({"prefix_hits": 1.0}, "prefix_hits"),
        ({"gen_len": 0}, "gen_len"),
    ],
)
def test_what_cannot_be_served_is_named(change: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        replace(Serving(1.0, 10, 10), **change)  # type: ignore[arg-type]


def test_prefix_hits_spare_prompt_tokens_and_no_cache() -> None:
    plain, hit = Serving(1.0, 100, 50), Serving(1.0, 100, 50, prefix_hits=0.75)
    assert hit.prefill_tokens(10) == plain.prefill_tokens(10) / 4 == 5.0
    assert hit.kv_blocks(10) == plain.kv_blocks(10)


def a_plan() -> tuple[Program, Plan]:
    program = next(found for seed in range(100) if list(plans(found := serving_program(seed))))
    return program, planned(program)


def test_a_plan_for_serving_survives_json_and_says_what_it_expects() -> None:
    _, plan = a_plan()
    assert loads(Plan, dumps(plan)) == plan
    text = format_plan(plan)
    for part in ("serving 1 requests/s", "no latency limit", "running: ", " KV tokens in ", " tokens/s", "tpot ", "ttft at most"):
        assert part in text


def test_the_verifier_sees_a_load_that_contradicts_the_plan() -> None:
    program, plan = a_plan()
    for change in ({"running": 10**6}, {"token_budget": 0}, {"tokens_per_s": plan.tokens_per_s * 2}, {"in_flight": 9}):
        load = replace(plan.load, **change)
        assert plan_problems(replace(plan, prediction=replace(plan.prediction, load=load)), program)
    assert isinstance(plan.workload, Serving)
    strict = replace(plan.workload, tpot_s=plan.load.tpot_s / 2)
    asked = replace(program, request=replace(program.request, workload=strict))
    assert any("tpot" in problem for problem in plan_problems(replace(plan, workload=strict), asked))


def test_the_batch_of_a_plan_for_serving_fits_its_cache() -> None:
    _, plan = a_plan()
    batch = plan.batch
    assert 1 <= batch.batch_size <= plan.load.running
    assert batch.batch_size == 1 or batch.batch_size * batch.kv_len <= plan.load.kv_blocks * plan.load.block_size


def test_every_assignment_pass_serves_and_none_better_than_the_joint_one() -> None:
    program, best = a_plan()
    for name in ("assign-hand", "assign-fastest"):
        try:
            other = run_passes(program, parse_pipeline(name)).require("plan")
        except InfeasibleError:
            continue
        assert other.tokens_per_s <= best.tokens_per_s * (1 + 3 * GAP) or other.quality.sensitivity > best.quality.sensitivity


def test_traces_are_read_for_a_workload(tmp_path: Path) -> None:
    from llmpq.commands.workload import workload_of

    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,4\n1,20,8\n2,30,6\n")
    values = {"batch_size": None, "prompt_len": 512, "gen_len": 100, "rate": None, "ttft": 1.0, "tpot": None}
    found = workload_of({**values, "prefix_hits": None, "trace": trace})
    assert (found.prompt_len, found.gen_len) == (20, 6)
    assert isinstance(found, Serving)
    assert (found.rate_per_s, found.ttft_s, found.longest) == (1.0, 1.0, 36)
    with pytest.raises(InputError, match="--ttft: requests per second are not known; give --rate or --trace"):
        workload_of({**values, "prefix_hits": None, "trace": None})
    with pytest.raises(InputError, match="--batch-size is of a batch, --rate, --ttft of serving"):
        workload_of({**values, "batch_size": 4, "rate": 1.0, "prefix_hits": None, "trace": None})


def test_a_rate_beyond_the_capacity_is_said_and_theta_is_refused() -> None:
    program, plan = a_plan()
    workload = program.request.workload
    assert isinstance(workload, Serving)
    asked = replace(program.request, workload=replace(workload, rate_per_s=plan.load.requests_per_s * 2))
    result = run_passes(replace(program, request=asked), parse_pipeline("assign-joint"))
    assert any("requests will queue" in notice for notice in result.notices)
    easy = replace(program.request, workload=replace(workload, rate_per_s=plan.load.requests_per_s / 2))
    assert run_passes(replace(program, request=easy), parse_pipeline("assign-joint")).notices == program.notices
    weighed = replace(program, request=replace(program.request, target=Target(budget=None, theta=1.0, explicit=True)))
    with pytest.raises(InputError, match="theta weighs the seconds of a batch"):
        search(weighed, None)
