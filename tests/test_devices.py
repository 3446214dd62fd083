"""Device library: figures, names, cards."""

from itertools import pairwise

import pytest

from llmpq.errors import ClusterError
from llmpq.hardware.devices import (
    DTYPES,
    DeviceType,
    closest_type,
    device_types,
    find_card_type,
    find_device_type,
    parse_capability,
)
from llmpq.serialize import dumps, loads

GIB = 2**30
TYPES = list(device_types().values())
OF_THE_DESIGN = (
    "T4,V100-16,V100-32,P100-12,P100-16,A10,A30,A40,A100-40,A100-80,L4,L40S,H100,H200,B200,RTX3090,RTX4090,RTX5090,MI300X,CPU"
)


def test_every_type_of_the_design_is_known() -> None:
    assert set(OF_THE_DESIGN.split(",")) <= set(device_types())


@pytest.mark.parametrize("device_type", TYPES, ids=lambda device_type: device_type.name)
def test_every_type_is_complete_and_plausible(device_type: DeviceType) -> None:
    assert device_type.source and device_type.efficiency_source
    assert 0.3 < device_type.prefill_efficiency < 1 and 0.3 < device_type.decode_efficiency < 1
    assert device_type.cache_efficiency is None or 0.3 < device_type.cache_efficiency < 1
    steps = [(1, 1.0), *device_type.row_steps]
    assert all(a < b and slower > faster for (a, faster), (b, slower) in pairwise(steps))
    assert 0 < device_type.reserve_bytes < device_type.memory_bytes / 4
    assert 1e-6 < device_type.overhead_s < 1e-2
    assert {"fp32", "fp16"} <= set(dict(device_type.flops)) <= set(DTYPES)
    assert (device_type.compute_capability is not None) == (device_type.kind == "cuda")
    # From a CPU to a B200, 16-bit arithmetic is 10 to 400 operations for each byte of memory traffic.
    assert 9 < dict(device_type.flops)["fp16"] / device_type.bandwidth_bytes_per_s < 450
    assert loads(DeviceType, dumps(device_type)) == device_type


@pytest.mark.parametrize("device_type", [t for t in TYPES if t.kind == "cuda"], ids=lambda device_type: device_type.name)
def test_dtypes_follow_the_compute_capability(device_type: DeviceType) -> None:
    capability = device_type.compute_capability or (0, 0)
    assert device_type.supports_bf16 == (capability >= (8, 0))
    assert (device_type.peak_flops("int8") is not None) == (capability >= (7, 5))
    assert (device_type.peak_flops("fp8") is not None) == (capability >= (8, 9))


@pytest.mark.parametrize(
    ("name", "bandwidth", "fp16", "memory_gb"),
    [
        ("T4", 320e9, 65e12, 16),
        ("L4", 300e9, 121e12, 24),
        ("V100-32", 900e9, 125e12, 34.4),
        ("A100-80", 2039e9, 312e12, 85.9),
        ("H100", 3350e9, 989e12, 85.9),
    ],
)
def test_well_known_cards_have_their_data_sheet_figures(name: str, bandwidth: float, fp16: float, memory_gb: float) -> None:
    device_type = device_types()[name]
    assert (device_type.bandwidth_bytes_per_s, device_type.peak_flops("fp16")) == (bandwidth, fp16)
    assert 0.9 < device_type.memory_bytes / (memory_gb * 1e9) < 1


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("t4", "T4"),
        (" T4 ", "T4"),
        ("a100-80GB", "A100-80"),
        ("A100 80GB", "A100-80"),
        ("Tesla T4", "T4"),
        ("RTX 3090", "RTX3090"),
        ("3090", "RTX3090"),
        ("h100-sxm", "H100"),
        ("cpu", "CPU"),
    ],
)
def test_names_are_read_in_any_case_and_spacing(written: str, name: str) -> None:
    assert find_device_type(written) == (device_types()[name], None)


@pytest.mark.parametrize("name", list(device_types()))
def test_every_name_finds_its_own_type(name: str) -> None:
    assert find_device_type(name.lower()) == (device_types()[name], None)


@pytest.mark.parametrize(("written", "name"), [("V100", "V100-16"), ("a100", "A100-40"), ("P100", "P100-12")])
def test_a_name_without_its_size_means_the_smallest_and_says_so(written: str, name: str) -> None:
    found, notice = find_device_type(written)
    assert found.name == name
    assert notice is not None and notice.startswith(f"{written} was read as {name}, the smallest of ")


def test_an_unknown_name_gets_a_suggestion_and_the_list() -> None:
    with pytest.raises(ClusterError, match=r"found device type 'RTX3900'.*did you mean .*RTX3090.*known are T4, V100-16"):
        find_device_type("RTX3900")


@pytest.mark.parametrize(
    ("card", "gib", "name"),
    [
        ("Tesla T4", 14.6, "T4"),
        ("Tesla V100-SXM2-16GB", 15.8, "V100-16"),
        ("Tesla V100-PCIE-32GB", 31.7, "V100-32"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40"),
        ("NVIDIA A100 80GB PCIe", 79.2, "A100-80"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
        ("NVIDIA H100 PCIe", 79.1, "H100-PCIE"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA A10G", 22.1, "A10G"),
        ("NVIDIA RTX A6000", 47.4, "RTXA6000"),
        ("NVIDIA RTX 6000 Ada Generation", 47.4, "RTX6000ADA"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "RTX4060TI-16"),
        ("AMD Instinct MI250X / MI250", 64, "MI250X"),
    ],
)
def test_cards_are_recognised_by_what_their_driver_reports(card: str, gib: float, name: str) -> None:
    assert find_card_type(card, int(gib * GIB)) == device_types()[name]


@pytest.mark.parametrize(
    "card",
    [
        "NVIDIA GeForce RTX 3060 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA H100 NVL",
        "Quadro K620",
    ],
)
def test_a_card_with_another_chip_or_a_part_of_one_is_not_taken_for_its_namesake(card: str) -> None:
    assert find_card_type(card, 8 * GIB) is None


def test_a_stand_in_has_the_nearest_capability_then_memory() -> None:
    assert closest_type("cuda", (8, 9), 20 * GIB).name == "L4"
    assert closest_type("cuda", (6, 1), 11 * GIB).name == "P100-12"
    assert closest_type("rocm", (11, 0), 200 * GIB).name == "MI300X"


def test_capabilities_need_two_numbers() -> None:
    assert parse_capability("12.0") == (12, 0)
    with pytest.raises(ClusterError, match="found 'sm75', expected a compute capability such as 8"):
        parse_capability("sm75")
