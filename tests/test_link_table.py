"""Link table: measured transfers as links of a cluster, named or implied by its devices."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.costs.source_bands import link_band
from llmpq.errors import ClusterError
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.link import WITHIN_HOST, Link
from llmpq.hardware.link_table import implied_kind, link_kinds, transfer_s
from llmpq.plan import Range
from llmpq.serialize import dumps, loads

KINDS = link_kinds()
MIB = 2**20


@pytest.mark.parametrize("name", KINDS)
def test_every_measured_size_comes_back_and_longer_messages_never_take_less(name: str) -> None:
    link, points = Link.of_kind(name), KINDS[name].points
    assert [link.transfer_s(size) for size, _ in points] == pytest.approx([seconds for _, seconds in points])
    grid = [transfer_s(points, 1000 * 1.2**power) for power in range(70)]
    assert grid == sorted(grid)


@pytest.mark.parametrize("name", KINDS)
def test_the_band_of_a_kind_is_narrow_and_holds_the_prediction(name: str) -> None:
    band = link_band(Link.of_kind(name))
    assert band == Range(*KINDS[name].band)
    assert 0.8 <= band.low <= 1 <= band.high <= 1.2


def test_one_bandwidth_and_one_latency_cannot_say_what_the_table_says() -> None:
    link = Link.of_kind("between-a40-hosts")
    linear = replace(link, kind=None)
    assert link.transfer_s(128 * 1024) > 1.5 * linear.transfer_s(128 * 1024)


def test_types_of_one_host_imply_their_link_and_a_stranger_among_them_none() -> None:
    assert Cluster.load("4xA100-80").within_host == Link.of_kind("nvlink-a100")
    assert Cluster.load("2xA100-40+2xA100-80,1xT4").within_host == Link.of_kind("nvlink-a100")
    for other in ("2xA100-80+1xT4", "1xA100-80,1xA100-80", "2xA100-80,2xH100", "2xT4"):
        assert Cluster.load(other).within_host == WITHIN_HOST
    assert implied_kind([["T4"], []]) is None


def test_a_cluster_file_may_name_a_kind_for_any_of_its_links() -> None:
    text = """
devices: [{type: A100-80, count: 2, host: a}, {type: A100-80, host: b}]
links:
  within_host: {bandwidth: 12 GB/s}
  between_hosts: {kind: Between-A100-DGX}
  pairs: [{from: "A100-80:0", to: "A100-80:1", kind: nvlink-a100}]
"""
    cluster = Cluster.from_yaml(text, "c.yaml")
    assert cluster.within_host.provenance == "given"
    assert cluster.link("A100-80:0", "A100-80:2").transfer_s(MIB) == pytest.approx(155e-6)
    assert cluster.link("A100-80:1", "A100-80:0").transfer_s(MIB) == pytest.approx(17e-6)
    assert loads(Cluster, dumps(cluster)) == cluster


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("{kind: nvlink-x}", "found link kind 'nvlink-x', which is not in the library; known are nvlink-a100"),
        ("{kind: host-a40, latency: 1 us}", "kind and latency exclude each other"),
        ("{latency: 1 us}", "found neither bandwidth nor kind; give bandwidth: 12 GB/s, or a kind of nvlink-a100"),
    ],
)
def test_a_kind_that_is_unknown_or_not_alone_is_named(link: str, told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        Cluster.from_yaml(f"devices: [{{type: T4, count: 2}}]\nlinks: {{within_host: {link}}}\n", "c.yaml")


@given(st.sampled_from(sorted(KINDS)), st.floats(1, 2**30), st.floats(0.1, 10))
def test_a_link_made_faster_takes_less_by_as_much(name: str, nbytes: float, factor: float) -> None:
    link = Link.of_kind(name)
    faster = replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * factor, latency_s=link.latency_s / factor)
    assert faster.transfer_s(nbytes) == pytest.approx(link.transfer_s(nbytes) / factor)
