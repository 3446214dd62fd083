"""Candidates: groups, orders of devices that differ, and the assignment problem of one of them."""

from dataclasses import replace
from itertools import islice
from math import comb, factorial

import pytest

from llmpq.costs.table import micro_batch_sizes
from llmpq.costs.transfers import TOKEN_BYTES
from llmpq.hardware.cluster import Cluster, Link, PairLink
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.planning.candidates import Candidate, build_problem, candidate_groups
from llmpq.planning.orders import ascending, distinct_orders, identical_devices, teams
from llmpq.program import Program
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch
from tests.values import llama_graph, program, two_cpus


def on(cluster: str | Cluster, rules: tuple[str, ...] = ()) -> Program:
    plain = program(cluster=Cluster.load(cluster) if isinstance(cluster, str) else cluster)
    return replace(plain, request=replace(plain.request, rules=parse_rules(rules)))


def planned(plain: Program) -> Program:
    return run_passes(plain, parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior}"))


def test_devices_of_equal_figures_and_links_are_identical_on_whatever_host() -> None:
    assert identical_devices(on("3xT4+1xV100-32")) == ((0, 1, 2), (3,))
    assert identical_devices(on("2xT4+1xL4")) == ((0, 1), (2,))
    assert identical_devices(on("1xT4,1xT4")) == ((0, 1),)
    assert identical_devices(on("1xT4+1xL4,1xT4")) == ((0,), (1,), (2,))


def test_a_link_of_its_own_tells_a_device_apart() -> None:
    plain = Cluster.load("3xT4")
    slow = PairLink("T4:0", "T4:2", Link(1e6, 0.1, "given"))
    assert identical_devices(on(replace(plain, pairs=(slow,)))) == ((0, 2), (1,))


def test_a_link_that_is_slower_in_one_direction_tells_its_ends_apart() -> None:
    plain = Cluster.load("3xT4")
    pairs = (PairLink("T4:0", "T4:2", Link(1e6, 0.1, "given")), PairLink("T4:2", "T4:0", Link(1e9, 0.1, "given")))
    assert identical_devices(on(replace(plain, pairs=pairs))) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    "rule", ["device('t4:1').layers <= 3", "last_layer.device == 'T4:1'", "layers[0].device in {'T4:1', 'T4:2'}"]
)
def test_a_rule_tells_the_devices_that_it_names_apart(rule: str) -> None:
    groups = identical_devices(on("4xT4", (rule,)))
    assert (1,) in groups
    assert (0, 3) in groups or (0, 2, 3) in groups


def test_every_order_of_unlike_devices_and_none_twice_of_identical_ones() -> None:
    groups = ((0, 1, 2), (3,), (4, 5))
    orders = list(distinct_orders(groups, tuple(range(6))))
    assert len(set(orders)) == len(orders) == factorial(6) // (factorial(3) * factorial(2))
    assert all(ascending(groups, order) == order for order in orders)


def test_orders_of_a_team_hold_its_devices_alone() -> None:
    orders = list(distinct_orders(((0, 1, 2), (3,)), (0, 1, 3)))
    assert len(orders) == 3
    assert set(orders) == {(0, 1, 3), (0, 3, 1), (3, 0, 1)}


def test_orders_are_made_as_they_are_asked_for_the_clusters_own_first_identical_devices_adjacent_next() -> None:
    groups = tuple(tuple(range(j, 16, 4)) for j in range(4))
    orders = list(islice(distinct_orders(groups, tuple(range(16))), 200))
    assert orders[0] == tuple(range(16))
    assert all(order[:4] in groups for order in orders[1 : 1 + factorial(4)])
    assert len(set(orders)) == len(orders) == 200
    assert all(sorted(order) == list(range(16)) for order in orders)


def test_teams_are_the_sets_of_two_or_more_up_to_identical_devices() -> None:
    found = teams(((0, 1, 2, 3), (4, 5)))
    assert found is not None
    assert len(set(found)) == len(found) == 5 * 3 - 3
    assert (0, 4) in found
    assert (1, 4) not in found
    distinct = teams(tuple((j,) for j in range(5)))
    assert distinct is not None
    assert len(distinct) == sum(comb(5, k) for k in range(2, 6))


def test_too_many_teams_are_none_rather_than_some() -> None:
    assert teams(tuple((j,) for j in range(16))) is None


def test_groups_are_all_devices_together_and_each_sort_alone_at_every_size() -> None:
    plain = planned(on("2xT4+1xL4"))
    assert isinstance(plain.request.workload, Batch)
    sizes = set(micro_batch_sizes(plain.request.workload, 3))
    groups = candidate_groups(plain)
    assert {group.devices for group in groups} == {(0, 1, 2), (0,), (2,)}
    assert len([group for group in groups if group.options is None]) == 3 * len(sizes)
    assert {(group.prefill_micro_batch, group.decode_micro_batch) for group in groups} == sizes
    assert {group.devices for group in candidate_groups(plain, together=False)} == {(0,), (2,)}


def test_a_cluster_of_one_device_has_it_alone() -> None:
    assert {group.devices for group in candidate_groups(planned(on("1xT4")))} == {(0,)}


def test_links_carry_the_hidden_state_forward_and_tokens_back() -> None:
    ready = planned(program(cluster=two_cpus(), workload=Batch(8, 64, 32)))
    problem = build_problem(ready, Candidate((1, 0), 2, 4), None)
    link = ready.request.cluster.link("CPU:1", "CPU:0")
    hidden = 2 * ready.graph.hidden_size
    assert problem.devices == ("CPU:1", "CPU:0")
    assert problem.link_prefill_s[0][1] == link.transfer_s(2 * 64 * hidden)
    assert problem.link_decode_s[0][1] == link.transfer_s(4 * hidden)
    assert problem.link_decode_s[1][0] == link.transfer_s(4 * TOKEN_BYTES)
    assert (problem.prefill_micro_batches, problem.decode_micro_batches) == (4, 2)


def test_a_batch_that_does_not_divide_has_a_last_short_micro_batch_at_the_price_of_a_full_one() -> None:
    ready = planned(program(cluster=Cluster.load("3xT4"), workload=Batch(8, 64, 32)))
    problem = build_problem(ready, Candidate((0, 1, 2), 3, 3), None)
    assert (problem.prefill_micro_batches, problem.decode_micro_batches) == (3, 3)


def test_a_tied_head_is_copied_unless_the_device_is_alone() -> None:
    ready = planned(program(graph=llama_graph(tied=True), cluster=two_cpus()))
    together, alone = (build_problem(ready, Candidate(order, 8, 8), None) for order in ((0, 1), (0,)))
    embedding = ready.graph.first_bytes
    assert together.last_stage.bytes[0] - alone.last_stage.bytes[0] == embedding
    untied = planned(program(graph=llama_graph(tied=False), cluster=two_cpus()))
    together, alone = (build_problem(untied, Candidate(order, 8, 8), None) for order in ((0, 1), (0,)))
    assert together.last_stage.bytes[0] == alone.last_stage.bytes[0]


def test_what_activations_leave_may_be_less_than_nothing() -> None:
    ready = planned(program(cluster=two_cpus("1 MiB", "64 MiB"), workload=Batch(64, 64, 32)))
    problem = build_problem(ready, Candidate((0, 1), 64, 64), None)
    small, large = problem.capacity_bytes
    assert small < 0 < large
    assert large - small == 63 * 2**20


def test_unsupported_cells_are_none_in_time_and_bytes() -> None:
    plain = program(cluster=Cluster.load("1xT4,1xV100-32"), precisions="16,w4a16")
    ready = planned(replace(plain, request=replace(plain.request, engine="vllm")))
    problem = build_problem(ready, Candidate((0, 1), 8, 8), None)
    for cells in (problem.prefill_s, problem.decode_s, problem.layer_bytes):
        assert cells[0][1] == (None, None)  # vLLM has no attention backend for V100
        assert None not in cells[0][0]
