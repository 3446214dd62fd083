"""Discovery: cards matched to types and compared with the torch build, without a card."""

from types import SimpleNamespace

import pytest
import torch

from llmpq.hardware.cluster import Cluster
from llmpq.hardware.devices import device_types
from llmpq.hardware.local_devices import LocalCard, describe, has_kernels, local_cards

GIB = 2**30
NEW_BUILD = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
T4 = LocalCard("Tesla T4", 14 * GIB, "cuda", "sm75", (7, 5))
V100 = LocalCard("Tesla V100-SXM2-32GB", 31 * GIB, "cuda", "sm70", (7, 0))
MI300X = LocalCard("AMD Instinct MI300X", 190 * GIB, "rocm", "gfx942", (9, 4))


def pretend_cards(monkeypatch: pytest.MonkeyPatch, *cards: SimpleNamespace) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(NEW_BUILD))


def test_cards_become_devices_with_their_real_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    t4 = SimpleNamespace(name="Tesla T4", total_memory=14 * GIB, major=7, minor=5)
    v100 = SimpleNamespace(name="Tesla V100-SXM2-32GB", total_memory=31 * GIB, major=7, minor=0)
    pretend_cards(monkeypatch, t4, t4, v100)
    cluster = Cluster.discover()
    assert [device.name for device in cluster.devices] == ["T4:0", "T4:1", "V100-32:0"]
    assert cluster.devices[0].memory_bytes == 14 * GIB
    assert cluster.devices[0].reserve_bytes == device_types()["T4"].reserve_bytes
    assert cluster.notices == (
        "V100-32:0 is sm70, this torch build has kernels for sm75 sm80 sm86 sm90 sm100 sm120: use a cu126 build or llama.cpp",
    )


def test_without_a_card_the_cpu_is_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(monkeypatch)
    cluster = Cluster.discover()
    assert Cluster.load("local") == cluster
    assert [device.name for device in cluster.devices] == ["CPU:0"]
    assert 0 < cluster.devices[0].capacity_bytes < cluster.devices[0].memory_bytes
    assert "no card was found" in cluster.notices[0]


def test_rocm_cards_are_named_by_their_gfx_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        name="AMD Instinct MI300X", total_memory=190 * GIB, major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-"
    )
    pretend_cards(monkeypatch, card)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert local_cards() == (MI300X,)


@pytest.mark.parametrize(
    ("card", "architectures", "expected"),
    [
        (T4, NEW_BUILD, True),
        (V100, NEW_BUILD, False),
        (V100, ("sm_60", "sm_70"), True),
        (
            LocalCard("NVIDIA L4", GIB, "cuda", "sm89", (8, 9)),
            ("sm_86",),
            True,
        ),  # same major version: binaries run on later minors
        (LocalCard("NVIDIA A100", GIB, "cuda", "sm80", (8, 0)), ("sm_86",), False),
        (LocalCard("NVIDIA H100", GIB, "cuda", "sm90", (9, 0)), ("sm_90a",), True),
        (LocalCard("NVIDIA B200", GIB, "cuda", "sm100", (10, 0)), ("sm_90",), False),
        (
            LocalCard("NVIDIA B200", GIB, "cuda", "sm100", (10, 0)),
            ("sm_90", "compute_90"),
            True,
        ),  # PTX is compiled for later cards
        (T4, (), False),
        (MI300X, ("gfx90a", "gfx942"), True),
        (MI300X, ("gfx90a",), False),
    ],
)
def test_a_build_runs_a_card_by_same_major_binaries_or_older_ptx(
    card: LocalCard, architectures: tuple[str, ...], expected: bool
) -> None:
    assert has_kernels(card, architectures) == expected


def test_a_card_that_is_not_in_the_library_gets_a_stand_in_and_says_so() -> None:
    card = LocalCard("NVIDIA GeForce RTX 3060 Ti", 8 * GIB, "cuda", "sm86", (8, 6))
    spec = describe((card,), NEW_BUILD)
    (entry,) = spec.entries
    assert (entry.type.name, entry.memory_bytes, entry.type.compute_capability) == ("RTX-3060-TI", 8 * GIB, (8, 6))
    assert entry.type.bandwidth_bytes_per_s == device_types()["RTX3080-10"].bandwidth_bytes_per_s
    assert spec.notices == (
        "NVIDIA GeForce RTX 3060 Ti is not in the library: bandwidth and flops are assumed to be those of RTX3080-10; "
        "describe it in a cluster file",
    )
