"""Row steps: where a 16-bit product takes another tile, in linears, layers, sizes of micro-batches and of serving steps."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.compiler import plan
from llmpq.costs import derive_costs, gemm_latency_s, layer_latency_s
from llmpq.costs.linear_latency import linear_latency_s
from llmpq.costs.table import micro_batch_sizes, most_rows_of
from llmpq.graph import Linear
from llmpq.hardware.cluster import Cluster, Device
from llmpq.plan import ComputeDtype
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.workload import Batch, Serving
from tests.values import llama_graph, llama_kind

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
T4, V100, L4 = (Cluster.load(f"1x{name}").devices[0] for name in ("T4", "V100-16", "L4"))
STEPPED = {"T4": T4, "V100": V100, "L4": L4}
UP = Linear("up", 8192, 28672, False, "mlp", "up")

# Milliseconds of one layer of a 30B Llama (hidden 6656, 52 heads, intermediate 17920) in vLLM at fp16 by decoding sequences:
# figures of Helix' machine profiles (github.com/Thesys-lab/Helix-ASPLOS25, Apache-2.0), each side of a step and far from one.
PUBLISHED = {
    "T4": {2: 4.7, 16: 6.0, 18: 7.1, 50: 10.0, 100: 14.6, 200: 25, 400: 49},
    "V100": {2: 1.8, 30: 2.7, 35: 3.5, 60: 4.2, 65: 5.5, 100: 6.5, 200: 9, 400: 16},
    "L4": {2: 4.5, 16: 5.9, 18: 6.5, 60: 10.4, 100: 14.1, 200: 24, 400: 45},
}


def seconds(device: Device, precision: str, rows: int, engine: str = "local", compute_dtype: ComputeDtype = "float16") -> float:
    return linear_latency_s(device, UP, PRECISIONS[precision], rows, compute_dtype, engine)


def without_steps(device: Device) -> Device:
    return replace(device, type=replace(device.type, row_steps=()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_layer_takes_what_was_published_on_either_side_of_every_step(name: str) -> None:
    """760 tokens of context are assumed, as in benchmarks/layer_times.py; the steps alone are worth 10 to 50 %."""
    kind = llama_kind(hidden=6656, kv_heads=52, ffn=17920, head_dim=128)
    for rows, milliseconds in PUBLISHED[name].items():
        predicted = layer_latency_s(STEPPED[name], kind, PRECISIONS["16"], rows, 1, 760, "float16", "local")
        assert 1e3 * predicted == pytest.approx(milliseconds, rel=0.055), rows


@given(st.sampled_from(list(STEPPED)), st.integers(1, 1000), st.sampled_from(["16", "w8a16", "w4a16"]))
def test_more_rows_never_take_less_time(name: str, rows: int, precision: str) -> None:
    assert seconds(STEPPED[name], precision, rows) <= seconds(STEPPED[name], precision, rows + 1)


@pytest.mark.parametrize("device", STEPPED.values(), ids=STEPPED)
def test_every_step_of_a_device_is_one_of_its_products(device: Device) -> None:
    for least, _ in device.type.row_steps:
        assert seconds(device, "16", least) > 1.09 * seconds(device, "16", least - 1)


def test_below_the_first_step_and_where_arithmetic_takes_longer_nothing_changes() -> None:
    for rows in (1, 32, 1000, 8000):
        assert seconds(V100, "16", rows) == seconds(without_steps(V100), "16", rows)


def test_an_unpacked_weight_is_multiplied_as_one_of_16_bits() -> None:
    """A V100 has no kernel for packed weights on our runtime: they are unpacked, and the product has the same steps."""
    of_16_bits, unpacked = (seconds(V100, p, 33) - seconds(V100, p, 32) for p in ("16", "w4a16"))
    assert unpacked == pytest.approx(of_16_bits) != 0


def test_a_kernel_for_packed_weights_and_fp32_have_no_steps() -> None:
    """Neither was measured."""
    assert seconds(T4, "w4a16", 17, "vllm") == seconds(without_steps(T4), "w4a16", 17, "vllm")
    assert seconds(T4, "16", 17, compute_dtype="float32") == seconds(without_steps(T4), "16", 17, compute_dtype="float32")


def test_experts_count_the_rows_that_fall_to_each() -> None:
    experts = Linear("experts", 2048, 8192, False, "mlp", "experts", experts=64, active_experts=2)

    def of(device: Device, tokens: int) -> float:
        return linear_latency_s(device, experts, PRECISIONS["16"], tokens, "float16", "local")

    assert of(V100, 512) == of(without_steps(V100), 512)  # 16 rows each
    assert of(V100, 1280) > of(without_steps(V100), 1280)  # 40 rows each


def test_single_products_have_the_same_steps() -> None:
    few, more = gemm_latency_s("V100-16", "bf16", [32, 33], 28672, 8192)
    assert more - few == pytest.approx(seconds(V100, "16", 33) - seconds(V100, "16", 32), rel=0.01)
    few, more = gemm_latency_s("V100-16", "w4a16", [32, 33], 28672, 8192)
    assert more == pytest.approx(few, rel=0.01)


def test_attention_reads_its_cache_at_an_efficiency_of_its_own() -> None:
    kind = llama_kind(hidden=6656, kv_heads=52, ffn=17920, head_dim=128)
    longer, shorter = (layer_latency_s(T4, kind, PRECISIONS["16"], 8, 1, context, "float16", "local") for context in (4096, 2048))
    assert T4.type.cache_efficiency is not None
    assert longer - shorter == pytest.approx(8 * 2048 * 52 * 128 * 2 * 2 / (T4.type.cache_efficiency * 320e9))


def test_micro_batches_just_below_a_step_are_tried() -> None:
    """128 sequences on three V100: 43 in three parts take the second tile, 32 in four parts the first."""
    batch = Batch(128, 512, 64)
    plain, stepped = micro_batch_sizes(batch, 3), micro_batch_sizes(batch, 3, most_rows_of([V100]))
    assert most_rows_of([V100, T4]) == (16, 32, 64, 128)
    assert {d for _, d in stepped} - {d for _, d in plain} == {32}
    costs = derive_costs(llama_graph(), Cluster.load("3xV100-16"), batch, parse_precisions("16"), "float16", "local")
    assert {phase.micro_batch for phase in costs.decode} == {d for _, d in stepped}


def test_a_plan_of_three_cards_takes_four_micro_batches_where_each_then_stays_below_a_step() -> None:
    """Weights are read four times in place of three, each time in less than three quarters of the time."""
    made = plan("llama-2-13b", "3xV100-16", Batch(128, 16, 64), precisions="16", engine="local").plan
    assert made is not None
    assert (made.pipeline.decode_micro_batch, len(made.pipeline.stages)) == (32, 3)


def test_serving_tries_the_most_sequences_below_a_step() -> None:
    graph, workload = llama_graph(), Serving(1.0, 100, 300)

    def sizes(cluster: str) -> set[int]:
        costs = derive_costs(graph, Cluster.load(cluster), workload, parse_precisions("16"), "float16", "vllm")
        return {step.sequences for step in costs.steps}

    assert sizes("1xT4") - sizes("1xA10") == {96}  # 96 sequences and 32 tokens of prompts are 128 rows
    assert 12 in sizes("1xT4")


def benchmark() -> ModuleType:
    """benchmarks/layer_times.py."""
    spec = importlib.util.spec_from_file_location("layer_times", BENCHMARKS / "layer_times.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["layer_times"] = module
    spec.loader.exec_module(module)
    return module


def test_the_fit_finds_the_numbers_that_times_were_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "layer_times", ModuleType("layer_times"))  # taken back at the end
    layer_times = benchmark()
    kind = llama_kind(hidden=6656, kv_heads=52, ffn=17920, head_dim=128)
    made = layer_times.Fit(0.55, 0.8, 0.66, (1.3, 1.9))
    device, sizes = made.on(V100), {"decode": (2, 8, 30, 35, 60, 65, 100, 300), "prefill": (500, 4000)}
    times = [
        layer_times.Measured(phase, some, np.array([layer_times.layer_s(device, kind, phase, size) for size in some]))
        for phase, some in sizes.items()
    ]
    found = layer_times.fitted(V100, kind, times, layer_times.every(V100))
    assert found.numbers == pytest.approx(made.numbers, abs=0.03)
