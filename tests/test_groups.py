"""Groups of devices, and what their ranks send each other."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.bundled import bundled_yaml
from llmpq.errors import ClusterError
from llmpq.hardware.cluster import Cluster, Link, PairLink
from llmpq.hardware.collective_table import collective_s
from llmpq.hardware.groups import grouped
from llmpq.serialize import dumps, loads

FAST, SLOW = Link(300e9, 2e-6, "given"), Link(10e9, 20e-6, "given")


def names(cluster: Cluster | None) -> tuple[str, ...]:
    assert cluster is not None
    return tuple(device.name for device in cluster.devices)


def test_devices_that_are_alike_on_a_host_form_groups_and_the_rest_is_left_out() -> None:
    cluster = Cluster.load("5xL4+2xA100-40,2xL4,1xT4")
    assert names(grouped(cluster, 2)) == ("L4:0+L4:1", "L4:2+L4:3", "A100-40:0+A100-40:1", "L4:5+L4:6")
    assert names(grouped(cluster, 4)) == ("L4:0+L4:1+L4:2+L4:3",)
    assert grouped(cluster, 8) is None


def test_unlike_memory_or_speed_is_not_grouped() -> None:
    cluster = Cluster.load("2xL4")
    first, second = cluster.devices
    assert grouped(replace(cluster, devices=(first, replace(second, speed=0.9))), 2) is None
    assert grouped(replace(cluster, devices=(first, replace(second, memory_bytes=first.memory_bytes - 1))), 2) is None


def test_a_group_has_the_memory_of_each_and_the_slowest_link_within() -> None:
    pair = PairLink("L4:0", "L4:1", FAST)
    cluster = replace(Cluster.load("4xL4"), pairs=(pair,), within_host=SLOW)
    group = cluster.device("l4:0+L4:1")
    assert (group.name, group.ranks, group.members) == ("L4:0+L4:1", 2, ("L4:0", "L4:1"))
    assert (group.capacity_bytes, group.within) == (cluster.devices[0].capacity_bytes, FAST)
    assert cluster.device("L4:0+L4:1+L4:2").within == SLOW
    assert cluster.link("L4:0+L4:1", "L4:2+L4:3") == SLOW


def test_fast_pairs_come_together_wherever_they_stand() -> None:
    pairs = tuple(PairLink(f"L4:{a}", f"L4:{b}", FAST) for a, b in ((0, 2), (1, 3)))
    cluster = replace(Cluster.load("4xL4"), pairs=pairs, within_host=SLOW)
    found = grouped(cluster, 2)
    assert names(found) == ("L4:0+L4:2", "L4:1+L4:3")
    assert found is not None and {device.within for device in found.devices} == {FAST}
    assert found.link(*names(found)) == SLOW


def test_links_between_groups_are_those_of_their_devices() -> None:
    cluster = replace(Cluster.load("4xL4"), pairs=(PairLink("L4:0", "L4:2", SLOW),), within_host=FAST)
    found = grouped(cluster, 2)
    assert found is not None
    for a, b in combinations(names(found), 2):
        assert found.link(a, b) == cluster.link(a, b) == max((SLOW, FAST), key=lambda link: link.transfer_s(1 << 20))


@pytest.mark.parametrize(
    ("name", "message"),
    [("L4:0+T4:0", "group L4:0"), ("L4:0+L4:0", "group L4:0"), ("L4:0+L4:9", "no device 'l4:9'"), ("L4:0+L4:2", "one host")],
)
def test_what_is_no_group_is_told(name: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message.replace("+", r"\+")):
        Cluster.load("2xL4+1xT4,1xL4").device(name)


def test_a_cluster_of_groups_is_a_value() -> None:
    found = grouped(Cluster.load("4xL4"), 2)
    assert found is not None
    assert loads(Cluster, dumps(found)) == found
    assert "ranks" not in dumps(Cluster.load("4xL4"))


@pytest.mark.parametrize("ranks", (2, 4, 8))
def test_a_ring_takes_two_rounds_of_messages_to_reduce_and_one_to_gather(ranks: int) -> None:
    cluster = replace(Cluster.load("8xL4"), within_host=Link(1e9, 1e-3, "given"))
    group = cluster.group(cluster.devices[:ranks])
    assert collective_s(group, "all-reduce", 8e6) == pytest.approx(2 * (ranks - 1) * (1e-3 + 8e-3 / ranks))
    assert collective_s(group, "all-gather", 8e6) == pytest.approx((ranks - 1) * (1e-3 + 8e-3 / ranks))
    assert collective_s(cluster.devices[0], "all-reduce", 8e6) == 0


@pytest.mark.parametrize(("cluster", "kind"), [("8xA100-80", "nvlink-a100"), ("8xH100", "nvlink-h100"), ("8xL40S", "pcie-l40s")])
@pytest.mark.parametrize("ranks", (2, 4, 8))
def test_measured_collectives_are_met_at_the_sizes_that_were_measured(cluster: str, kind: str, ranks: int) -> None:
    found = Cluster.load(cluster)
    group, table = found.group(found.devices[:ranks]), bundled_yaml("links/collectives.yaml")["kinds"][kind]
    for operation in ("all-reduce", "all-gather"):
        for nbytes, us in zip(table["bytes"], table["us"][operation][ranks], strict=True):
            assert collective_s(group, operation, nbytes) == pytest.approx(us * 1e-6)


@given(st.sampled_from(("8xA100-80", "8xH100", "8xL4", "8xCPU")), st.sampled_from((2, 4, 8)), st.floats(1, 1e9), st.floats(1, 4))
def test_more_bytes_never_take_less(cluster: str, ranks: int, nbytes: float, factor: float) -> None:
    found = Cluster.load(cluster)
    group = found.group(found.devices[:ranks])
    assert collective_s(group, "all-reduce", nbytes) <= collective_s(group, "all-reduce", factor * nbytes) * (1 + 1e-9)


def test_a_link_that_was_made_slower_slows_what_was_measured() -> None:
    cluster = Cluster.load("2xA100-80")
    link = cluster.within_host
    slower = replace(cluster, within_host=replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / 10))
    before, after = (collective_s(each.group(each.devices), "all-reduce", 1e8) for each in (cluster, slower))
    assert 5 * before < after <= 10 * before
