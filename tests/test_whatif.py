"""Other hardware: what the changes mean, each row as planning from scratch has it, prices, the largest batch."""

import json
from dataclasses import replace

import pytest

from llmpq.answers.cluster_changes import changed, with_prices
from llmpq.answers.whatif import Outcome, price_per_hour, whatif
from llmpq.errors import ClusterError, InfeasibleError, InputError, LlmpqError
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.program import Program
from llmpq.workload import Batch, Serving, Workload, with_length
from tests.command_line import CLUSTER, WORKLOAD
from tests.conftest import CommandLine
from tests.values import llama_graph, program, two_cpus

PREPARE = "derive-costs,estimate-sensitivity{indicator=prior}"
CARDS = Cluster.load("2xT4+1xV100-32,1xL4")


def names(cluster: Cluster) -> list[str]:
    return [device.name for device in cluster.devices]


def ready(memory: str = "1200 KiB", workload: Workload | None = None) -> Program:
    plain = program(llama_graph(tied=False), two_cpus(memory, memory), Batch(4, 32, 16), "16,w4a16")
    request = replace(plain.request, workload=workload or plain.request.workload)
    return run_passes(replace(plain, request=request), parse_pipeline(PREPARE))


def from_scratch(asked: Program, cluster: Cluster, workload: Workload | None = None) -> Plan:
    request = replace(asked.request, cluster=cluster, workload=workload or asked.request.workload)
    plan: Plan = run_passes(replace(asked, request=request, costs=None), parse_pipeline("derive-costs,assign-joint")).require(
        "plan"
    )
    return plan


def test_devices_are_added_on_a_host_of_their_own_or_on_the_first() -> None:
    apart, together = changed(CARDS, "add", "2xL4,1xT4").cluster, changed(CARDS, "add", "+1xT4").cluster
    assert names(apart) == ["T4:0", "T4:1", "V100-32:0", "L4:0", "L4:1", "L4:2", "T4:2"]
    hosts = [device.host for device in apart.devices]
    assert hosts[4] == hosts[5] and len(set(hosts)) == 4
    assert names(together)[-1] == "T4:2" and together.devices[-1].host == CARDS.devices[0].host


def test_devices_are_removed_and_replaced_with_their_links() -> None:
    linked = changed(CARDS, "link", "T4:0-V100-32:0=2 GB/s,50 us").cluster
    assert linked.link("V100-32:0", "T4:0").bandwidth_bytes_per_s == 2e9
    assert linked.link("T4:0", "V100-32:0").latency_s == pytest.approx(50e-6)
    assert linked.link("T4:1", "V100-32:0") == CARDS.link("T4:1", "V100-32:0")
    assert changed(linked, "remove", "V100-32:0").cluster.pairs == ()
    swapped = changed(linked, "replace", "t4:0=L4").cluster
    assert names(swapped) == ["L4:1", "T4:1", "V100-32:0", "L4:0"]
    assert swapped.link("L4:1", "V100-32:0").bandwidth_bytes_per_s == 2e9
    assert swapped.devices[0].host == CARDS.devices[0].host


def test_links_keep_their_latency_unless_it_is_given() -> None:
    wide = changed(CARDS, "link", "between_hosts=100 Gbit/s").cluster
    assert wide.between_hosts.bandwidth_bytes_per_s == 12.5e9
    assert wide.between_hosts.latency_s == CARDS.between_hosts.latency_s
    again = changed(changed(CARDS, "link", "T4:0-T4:1=1 GB/s").cluster, "link", "T4:1-T4:0=3 GB/s").cluster
    assert len(again.pairs) == 1 and again.link("T4:0", "T4:1").bandwidth_bytes_per_s == 3e9


@pytest.mark.parametrize(
    ("verb", "text", "said"),
    [
        ("remove", "T4:7", "has no device 'T4:7'"),
        ("remove", "T4:0,T4:1,V100-32:0,L4:0", "no device is left"),
        ("replace", "T4:0", "expected DEVICE=TYPE"),
        ("replace", "T4:0=2xL4", "found 2 devices for one"),
        ("add", "1xQ9", "not in the library"),
        ("link", "T4:0-T4:0=1 GB/s", "expected within_host, between_hosts or two devices"),
        ("link", "within_host", "found no bandwidth"),
    ],
)
def test_a_change_that_cannot_be_read_is_refused(verb: str, text: str, said: str) -> None:
    with pytest.raises(LlmpqError, match=said) as caught:
        changed(CARDS, verb, text)
    assert isinstance(caught.value, ClusterError | InputError)


def test_prices_are_of_types_or_devices_and_of_the_whole_cluster() -> None:
    some, other = with_prices((CARDS, Cluster.load("1xA10")), ("T4=0.5", "V100-32:0=2", "A10=1"))
    assert price_per_hour(some) is None and price_per_hour(other) == 1.0
    (all_known,) = with_prices((some,), ("L4=0.75",))
    assert price_per_hour(all_known) == 0.5 + 0.5 + 2 + 0.75
    added = changed(all_known, "add", "1xT4").cluster
    assert price_per_hour(added) == 0.5 * 3 + 2 + 0.75
    with pytest.raises(InputError, match="found no price"):
        with_prices((CARDS,), ("T4",))
    with pytest.raises(InputError, match="is neither a device nor a type of the clusters"):
        with_prices((CARDS,), ("T5=1",))


def test_every_row_is_the_plan_from_scratch_the_baseline_first() -> None:
    asked = ready("800 KiB")
    (cluster,) = with_prices((asked.request.cluster,), ("CPU=0.5",))
    asked = replace(asked, request=replace(asked.request, cluster=cluster))
    changes = [changed(cluster, "link", "within_host=1 MB/s"), changed(cluster, "remove", "CPU:1")]
    base, slow, alone = whatif(asked, changes)
    for row, where in ((base, cluster), (slow, changes[0].cluster)):
        plan = from_scratch(asked, where)
        assert row.tokens_per_s == pytest.approx(plan.tokens_per_s, rel=2e-3)
        assert row.price_per_hour == 1.0 and row.tokens_per_unit == pytest.approx(3600 * plan.tokens_per_s, rel=2e-3)
    assert (base.change, slow.change) == ("as it is", "link within_host=1 MB/s")
    assert (slow.tokens_per_s or 0) < (base.tokens_per_s or 0)
    assert alone.tokens_per_s is None and "short" in (alone.reason or "") and alone.price_per_hour == 0.5


def test_concurrency_is_the_largest_batch_within_the_loss_of_the_row() -> None:
    asked = ready("2 MiB")
    (row,) = whatif(asked, [])
    assert row.concurrency is not None and row.concurrency >= 4

    def has_plan(size: int) -> bool:
        try:
            plan = from_scratch(asked, asked.request.cluster, with_length(asked.request.workload, "batch_size", size))
        except InfeasibleError:
            return False
        return plan.quality.sensitivity <= (row.plan.quality.budget or 0) * (1 + 1e-9) if row.plan else False

    assert has_plan(row.concurrency) and not has_plan(row.concurrency + 1)


def test_concurrency_when_serving_is_what_runs_at_once() -> None:
    (row,) = whatif(ready("64 MiB", Serving(1.0, 32, 16)), [])
    assert isinstance(row, Outcome) and row.plan is not None and row.concurrency == row.plan.load.running


def test_the_command_prints_a_row_per_change_and_the_same_as_json(cli: CommandLine) -> None:
    asked = ("whatif", "demo", "-c", CLUSTER, *WORKLOAD, "--indicator", "prior", "--add", "1xCPU", "--remove", "CPU:1")
    table, told = cli(*asked, "--price", "CPU=0.5"), json.loads(cli(*asked, "--json").out)
    assert table.code == 0 and "tokens/unit" in table.out
    assert max(map(len, table.out.splitlines())) <= 80
    assert [row["change"] for row in told] == ["as it is", "add 1xCPU", "remove CPU:1"]
    assert all(row["change"] in table.out for row in told)
