"""Cluster files: the schema, the bundled examples, and errors that name line, column, key and remedy."""

from pathlib import Path
from textwrap import dedent

import pytest

from llmpq.errors import ClusterError
from llmpq.hardware.cluster import Cluster, Link
from llmpq.hardware.devices import device_types
from llmpq.hardware.support import supported_precisions
from llmpq.precision import PRECISIONS
from llmpq.serialize import dumps, loads

EXAMPLES = Path(__file__).parents[1] / "examples" / "clusters"
MIB = 2**20
OF_THE_DESIGN = """\
    name: two-unlike-cpus
    devices:
      - type: CPU
        count: 1
        memory: 24 MiB
        reserve: 2 MiB
        speed: 0.25
        host: a
        price_per_hour: 0.35
      - type: cpu
        memory: 16 MiB
        host: b
    links:
      within_host: {bandwidth: 12 GB/s, latency: 20 us}
      between_hosts: {bandwidth: 1.2 GB/s, latency: 80 us}
      pairs: [{from: "CPU:0", to: "cpu:1", bandwidth: 200 MB/s, latency: 200 us}]
    """
NPU = "devices: [{type: NPU, memory: 1 GiB, flops: 1 TFLOPS, bandwidth: 1 GB/s"


def read(text: str) -> Cluster:
    return Cluster.from_yaml(dedent(text), "my.yaml")


def test_the_file_of_the_design_is_read() -> None:
    cluster = read(OF_THE_DESIGN)
    first, second = cluster.devices
    assert (first.name, first.capacity_bytes, first.speed, first.host, first.price_per_hour) == (
        "CPU:0",
        22 * MIB,
        0.25,
        "a",
        0.35,
    )
    assert (second.name, second.capacity_bytes, second.speed, second.host, second.price_per_hour) == (
        "CPU:1",
        16 * MIB,
        1.0,
        "b",
        None,
    )
    assert cluster.within_host == Link(12e9, 20e-6, "given")
    assert cluster.link("CPU:0", "CPU:1") == cluster.link("CPU:1", "CPU:0") == Link(2e8, 2e-4, "given")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_read_and_survives_json(path: Path) -> None:
    cluster = Cluster.load(path)
    assert cluster == Cluster.load(str(path)) == loads(Cluster, dumps(cluster))
    assert (cluster.name, cluster.notices) == (path.stem, ())


def test_a_reserve_counts_against_default_memory_or_when_it_is_written() -> None:
    t4 = device_types()["T4"]
    cluster = read("devices: [{type: T4}, {type: T4, memory: 10 GiB}, {type: T4, reserve: 1 GiB}]")
    assert [device.reserve_bytes for device in cluster.devices] == [t4.reserve_bytes, 0, 1024 * MIB]


def test_entries_without_a_host_stand_alone_and_links_default_to_assumed() -> None:
    cluster = read("devices: [{type: T4, count: 2}, {type: T4}]")
    assert cluster.name == "my"
    assert cluster.link("T4:0", "T4:1") == Link(12e9, 20e-6, "assumed")
    assert cluster.link("T4:1", "T4:2") == Link(1.2e9, 80e-6, "assumed")


def test_a_missing_size_is_noticed() -> None:
    assert read("devices: [{type: A100}]").notices == ("A100 was read as A100-40, the smallest of A100-40, A100-80",)


def test_a_new_type_brings_its_own_figures() -> None:
    device = read(NPU + ", precisions: [16, w8a16]}]").devices[0]
    assert (device.name, device.capacity_bytes, device.type.kind) == ("NPU:0", 1024 * MIB, "cpu")
    assert device.type.flops == (("fp32", 1e12), ("fp16", 1e12), ("bf16", 1e12))
    assert [p.name for p in supported_precisions("local", device.type, tuple(PRECISIONS.values()))] == ["16", "w8a16"]


def test_a_new_cuda_type_has_bf16_only_from_capability_8() -> None:
    old = read(NPU + ", compute_capability: 6.1}]").devices[0].type
    new = read(NPU + ", compute_capability: 8.6}]").devices[0].type
    assert (old.kind, old.compute_capability, old.supports_bf16, new.supports_bf16) == ("cuda", (6, 1), False, True)


def test_a_new_type_may_give_rates_by_dtype_and_be_used_again() -> None:
    text = (
        "devices: [{type: NPU, memory: 1 GiB, flops: {fp16: 2e12, int8: 4 TOPS}, bandwidth: 1 GB/s}, {type: NPU, memory: 2 GiB}]"
    )
    first, second = read(text).devices
    assert first.type == second.type and first.type.flops == (("fp16", 2e12), ("int8", 4e12))
    assert (second.name, second.memory_bytes) == ("NPU:1", 2048 * MIB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "my.yaml: the file is empty"),
        ("devices: [{type: T4]", r"my.yaml, line 1, column \d+: not YAML: .*mind indentation"),
        ("devices: &a [*b]", "my.yaml, line 1, column 14: not YAML: found undefined alias"),
        ("a: 1\n--- \nb: 2", "line 2, column 1: not YAML: but found another document"),
        ("devices: \x00", "my.yaml: not YAML: .*special characters"),
        ("3xT4", "my.yaml, line 1, column 1: found '3xT4', expected a mapping with the keys name, devices, links"),
        ("name: x", "key 'devices' is missing"),
        ("devices: []", "line 1, column 10: devices: found an empty list, expected at least one entry"),
        ("devices: {type: T4}", "devices: found a mapping, expected a list"),
        ("devices:\n- T4", r"line 2, column 3: devices\[0\]: found 'T4', expected a mapping"),
        ("devices:\n- count: 2", r"devices\[0\]: key 'type' is missing"),
        (
            "devices:\n- type: T5",
            r"line 2, column 9: devices\[0\].type: found device type 'T5'.*did you mean T4.*own memory, flops",
        ),
        ("devices:\n- type:", r"devices\[0\].type: found nothing, expected a single value"),
        ("devices:\n- type: T4\n  memroy: 1", r"line 3, column 3: devices\[0\]: unknown key 'memroy'; .*did you mean 'memory'"),
        ("devices:\n- type: T4\n  type: L4", r"line 3, column 3: devices\[0\]: key 'type' is given twice"),
        ("devices:\n- {type: T4, [1]: 2}", r"line 2, column 14: devices\[0\]: found a list, expected a single value"),
        ("devices:\n- {type: T4, count: 0}", r"line 2, column 21: devices\[0\].count: found '0', expected a whole number"),
        ("devices:\n- {type: T4, count: 1.5}", "count: found '1.5', expected a whole number"),
        ("devices:\n- {type: T4, count: 5000}", "devices: 5000 devices, expected at most 1024"),
        (
            "devices:\n- {type: T4, memory: -1 GiB}",
            r"line 2, column 22: devices\[0\].memory: found '-1 GiB', expected a size such as",
        ),
        ("devices:\n- {type: T4, memory: 0}", "memory: found '0', expected more than 0"),
        ("devices:\n- {type: T4, memory: 24}", "memory: found '24' without a unit, expected a figure such as 24 MiB"),
        ("devices:\n- {type: T4, reserve: 512}", "reserve: found '512' without a unit, expected a figure such as 512 MiB"),
        (
            "devices:\n- {type: T4}\nlinks: {within_host: {bandwidth: 12, latency: 20 us}}",
            "bandwidth: found '12' without a unit, expected a figure such as 12 GB/s",
        ),
        (
            "devices:\n- {type: T4}\nlinks: {within_host: {bandwidth: 12 GB/s, latency: 20}}",
            "latency: found '20' without a unit, which is seconds; expected a time such as 20 us",
        ),
        ("devices:\n- {type: T4, memory: lots}", "memory: found 'lots', expected a size such as 24 MiB"),
        ("devices:\n- {type: T4, reserve: 99 GiB}", "reserve: found '99 GiB', expected less than the memory"),
        ("devices:\n- {type: T4, memory: 1 MiB, reserve: 1 MiB}", "reserve: found '1 MiB', expected less than the memory"),
        ("devices:\n- {type: T4, speed: 0}", "speed: found '0', expected more than 0"),
        ("devices:\n- {type: T4, speed: fast}", "speed: found 'fast', expected a number such as 0.25"),
        ("devices:\n- {type: T4, price_per_hour: -1}", "price_per_hour: found '-1', expected a number"),
        ("devices:\n- {type: T4, flops: 9e12}", r"line 2, column 21: devices\[0\].flops: T4 is already defined"),
        ("devices:\n- {type: NPU, flops: 9e12}", "type: NPU is not in the library and has no 'memory'"),
        ("devices:\n- {type: 'N:P', memory: 1, flops: 9e12, bandwidth: 1}", "found 'N:P', expected a name of letters"),
        (NPU + ", kind: cuda}]", "kind cuda needs compute_capability"),
        (NPU + ", kind: tpu}]", "kind: found 'tpu', expected one of cuda, rocm, cpu"),
        (NPU + ", compute_capability: sm75}]", "found 'sm75', expected a compute capability such as 8.6"),
        (NPU + ", precisions: [w5a16]}]", r"precisions\[0\]: precision 'w5a16' is unknown"),
        ("devices: [{type: NPU, memory: 1, flops: {fp64: 1}, bandwidth: 1}]", "flops: unknown key 'fp64'; .*did you mean 'fp"),
        ("devices: [{type: NPU, memory: 1, flops: {bf16: 1}, bandwidth: 1}]", "flops: key 'fp16' is missing"),
        ("devices: [{type: T4}]\nlinks: {within: {}}", "links: unknown key 'within'; .*did you mean 'within_host'"),
        ("devices: [{type: T4}]\nlinks: {within_host: {latency: 1}}", "links.within_host: found neither bandwidth nor kind"),
        ("devices: [{type: T4}]\nlinks: {within_host: {bandwidth: 0}}", "bandwidth: found '0', expected more than 0"),
        ("devices: [{type: T4}]\nlinks: {pairs: [{from: T4:0, bandwidth: 1}]}", r"links.pairs\[0\]: key 'to' is missing"),
        (
            "devices: [{type: T4}]\nlinks: {pairs: [{from: T4:0, to: T4:1, bandwidth: 1}]}",
            "line 2, column 34: .*to: found 'T4:1', .*known are T4:0",
        ),
        (
            "devices: [{type: T4}]\nlinks: {pairs: [{from: T4:0, to: T4:0, bandwidth: 1}]}",
            "from T4:0 to T4:0 stays within one device",
        ),
        (
            "devices: [{type: T4, count: 2}]\nlinks: {pairs: [{from: T4:0, to: T4:1, bandwidth: 1}, {from: t4:0, to: T4:1,"
            " bandwidth: 2}]}",
            r"links.pairs\[1\]: the link from T4:0 to T4:1 is given twice",
        ),
    ],
)
def test_errors_name_the_place_what_was_found_and_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message) as caught:
        read(text)
    assert str(caught.value).startswith("my.yaml") and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"missing.yaml does not exist; give its path, or a short string"):
        Cluster.load(tmp_path / "missing.yaml")
    with pytest.raises(ClusterError, match="cannot be read as UTF-8 text"):
        Cluster.load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClusterError, match="cannot be read as UTF-8 text"):
        Cluster.load(str(tmp_path / "binary.yaml"))


def test_a_document_nested_beyond_reason_is_an_error_not_a_crash() -> None:
    with pytest.raises(ClusterError, match=r"my\.yaml"):
        read("devices: " + "[" * 20000)
