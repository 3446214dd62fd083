"""Cluster: short strings, links, values; the files are in test_cluster_yaml.py, discovery in test_local_devices.py."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import ClusterError, InputError
from llmpq.hardware.cluster import Cluster, Device, Link, PairLink
from llmpq.hardware.devices import device_types
from llmpq.serialize import dumps, loads

SHORT = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from(sorted(device_types())), st.sampled_from(",+")), min_size=1, max_size=5
).map(lambda items: "".join(f"{separator}{count}x{name}" for count, name, separator in items)[1:])


def layout(cluster: Cluster) -> list[tuple[str, str]]:
    return [(device.name, device.host) for device in cluster.devices]


def test_commas_separate_hosts() -> None:
    assert layout(Cluster.load("3xT4,1xV100-32")) == [
        ("T4:0", "host0"),
        ("T4:1", "host0"),
        ("T4:2", "host0"),
        ("V100-32:0", "host1"),
    ]


def test_plus_joins_types_on_one_host() -> None:
    assert layout(Cluster.load("2xt4 + v100-32")) == [("T4:0", "host0"), ("T4:1", "host0"), ("V100-32:0", "host0")]


def test_devices_of_one_type_are_numbered_over_all_hosts() -> None:
    assert layout(Cluster.load("2xL4,2xL4")) == [("L4:0", "host0"), ("L4:1", "host0"), ("L4:2", "host1"), ("L4:3", "host1")]


def test_a_missing_size_is_noticed_once() -> None:
    assert Cluster.load("2xV100,V100").notices == ("V100 was read as V100-16, the smallest of V100-16, V100-32",)


def test_a_device_of_a_short_string_has_the_memory_and_reserve_of_its_type() -> None:
    device, device_type = Cluster.load("T4").devices[0], device_types()["T4"]
    assert device.capacity_bytes == device_type.memory_bytes - device_type.reserve_bytes
    assert (device.speed, device.price_per_hour) == (1.0, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found '', expected COUNTxTYPE"),
        ("3xT4,", "found '', expected COUNTxTYPE"),
        ("0xT4", "the count of T4 is 0"),
        ("-1xT4", "found '-1xT4', expected COUNTxTYPE"),
        ("2xT5", "cluster '2xT5': found device type 'T5'.*did you mean T4"),
        ("99999xT4", "99999 devices, expected at most 1024"),
        ("T4;L4", "found 'T4;L4', expected COUNTxTYPE"),
        ("cluster.yml", "cluster file cluster.yml does not exist"),
    ],
)
def test_malformed_short_strings_are_explained(text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        Cluster.load(text)


def test_links_of_a_short_string_are_assumed_by_host() -> None:
    cluster = Cluster.load("2xT4,V100-32")
    assert cluster.link("T4:0", "t4:1") == Link(12e9, 20e-6, "assumed")
    assert cluster.link("T4:0", "V100-32:0") == Link(1.2e9, 80e-6, "assumed")
    assert cluster.link("T4:0", "V100-32:0").transfer_s(1.2e9) == pytest.approx(1.00008)
    assert cluster.link("T4:1", "T4:1").transfer_s(10**9) == 0


def test_a_pair_overrides_both_directions_unless_the_reverse_is_given() -> None:
    there, back = Link(1e9, 0.0, "given"), Link(2e9, 0.0, "given")
    one_way = replace(Cluster.load("2xT4"), pairs=(PairLink("T4:0", "T4:1", there),))
    assert one_way.link("T4:0", "T4:1") == one_way.link("T4:1", "T4:0") == there
    both = replace(one_way, pairs=(*one_way.pairs, PairLink("T4:1", "T4:0", back)))
    assert (both.link("T4:0", "T4:1"), both.link("T4:1", "T4:0")) == (there, back)


def test_devices_are_found_in_any_case_and_unknown_ones_are_listed() -> None:
    cluster = Cluster.load("T4,CPU")
    assert cluster.device("cpu:0").type.kind == "cpu"
    with pytest.raises(ClusterError, match="no device 'T4:1'; it has T4:0, CPU:0"):
        cluster.device("T4:1")


@given(SHORT)
def test_clusters_survive_json_and_name_each_device_once(text: str) -> None:
    cluster = Cluster.load(text)
    assert loads(Cluster, dumps(cluster)) == cluster
    assert len({device.name for device in cluster.devices}) == len(cluster.devices)
    assert len({device.host for device in cluster.devices}) == text.count(",") + 1


def test_values_that_contradict_themselves_are_refused() -> None:
    device = Cluster.load("T4").devices[0]
    for wrong in ({"reserve_bytes": device.memory_bytes}, {"memory_bytes": -1}, {"speed": 0.0}):
        with pytest.raises(ClusterError, match=r"device T4:0: .*expected"):
            replace(device, **wrong)
    with pytest.raises(ClusterError, match="expected at least one, each name once"):
        replace(Cluster.load("T4"), devices=(device, device))
    with pytest.raises(ClusterError, match="found devices none"):
        replace(Cluster.load("T4"), devices=())
    with pytest.raises(ClusterError, match="no device 'L4:0'"):
        replace(Cluster.load("T4"), pairs=(PairLink("T4:0", "L4:0", Link(1e9, 0.0, "given")),))
    with pytest.raises(ClusterError, match="expected a bandwidth above 0"):
        Link(0.0, 0.0, "given")


def test_json_with_a_wrong_field_names_it() -> None:
    text = dumps(Cluster.load("T4")).replace('"speed": 1.0', '"speed": "fast"')
    with pytest.raises(InputError, match=r"devices\[0\].speed: found 'fast'"):
        loads(Cluster, text)


def test_a_device_is_built_from_its_parts() -> None:
    device = Device("T4:0", device_types()["T4"], 100, 40, 0.5, "a", 0.35)
    assert device.capacity_bytes == 60


def test_loading_a_cluster_imports_no_torch() -> None:
    load = "from llmpq.hardware.cluster import Cluster; Cluster.load('3xT4,CPU'); import llmpq.hardware.support"
    program = f"import sys; {load}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=False).returncode == 0
