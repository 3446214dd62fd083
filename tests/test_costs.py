"""Costs: bytes and seconds of a layer graph on a cluster."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.compiler import plan
from llmpq.costs import activation_bytes, derive_costs, kv_cache_bytes, layer_latency_s
from llmpq.costs.linear_latency import linear_latency_s
from llmpq.costs.table import micro_batch_sizes
from llmpq.errors import InfeasibleError
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import resolve
from llmpq.graph import Linear
from llmpq.hardware.cluster import Cluster
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.workload import Batch
from tests.values import llama_graph, llama_kind, two_cpus

WORKLOAD = Batch(8, 64, 32)


def test_the_kv_cache_holds_every_sequence_at_its_final_length() -> None:
    assert kv_cache_bytes(llama_kind(kv_heads=1, head_dim=64), WORKLOAD) == 2 * 64 * 2 * 8 * (64 + 32 - 1)


@given(st.integers(1, 16), st.integers(1, 64), st.integers(0, 64))
def test_activations_grow_with_rows_tokens_and_context(rows: int, tokens: int, past: int) -> None:
    graph, kind = llama_graph(), llama_kind()
    here = activation_bytes(graph, kind, rows, tokens, tokens + past)
    assert here < activation_bytes(graph, kind, rows + 1, tokens, tokens + past)
    assert here < activation_bytes(graph, kind, rows, tokens + 1, tokens + 1 + past)
    assert here <= activation_bytes(graph, kind, rows, tokens, tokens + past + 1)


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 64), st.sampled_from(["16", "w8a8", "w8a16", "w4a16"]))
def test_latency_grows_with_rows_tokens_and_context(rows: int, tokens: int, precision: str) -> None:
    device, kind = two_cpus().devices[0], llama_kind()

    def seconds(rows: int, tokens: int, context: int) -> float:
        return layer_latency_s(device, kind, PRECISIONS[precision], rows, tokens, context, "bfloat16", "local")

    here = seconds(rows, tokens, tokens)
    assert (
        0
        < here
        <= min(seconds(rows + 1, tokens, tokens), seconds(rows, tokens + 1, tokens + 1), seconds(rows, tokens, tokens + 8))
    )


def test_half_the_speed_takes_twice_the_time() -> None:
    fast, slow = two_cpus().devices
    times = [layer_latency_s(d, llama_kind(), PRECISIONS["16"], 4, 16, 16, "bfloat16", "local") for d in (fast, slow)]
    assert times[1] == pytest.approx(2 * times[0])


def test_a_precision_without_a_kernel_costs_its_unpacking() -> None:
    """Decode on a T4: packed 4-bit kernels read a quarter of the bytes; unpacking reads and writes more than 16 bits would."""
    t4 = Cluster.load("1xT4").devices[0]
    kind = llama_kind(hidden=4096, ffn=11008, head_dim=128, kv_heads=32)

    def seconds(precision: str, engine: str) -> float:
        return layer_latency_s(t4, kind, PRECISIONS[precision], 1, 1, 64, "float16", engine)

    assert seconds("w4a16", "vllm") < seconds("16", "vllm") < seconds("w4a16", "local")


def test_a_sliding_window_bounds_the_context_that_is_read() -> None:
    device = two_cpus().devices[0]
    full, sliding = llama_kind(), llama_kind(window=128)

    def seconds(kind: object, context: int) -> float:
        return layer_latency_s(device, kind, PRECISIONS["16"], 4, 1, context, "bfloat16", "local")  # type: ignore[arg-type]

    assert seconds(sliding, 100_000) == seconds(full, 128) < seconds(full, 100_000)


@given(st.integers(1, 64), st.integers(1, 6))
def test_prefill_micro_batches_divide_decode_ones_and_cover_the_batch(batch_size: int, devices: int) -> None:
    pairs = micro_batch_sizes(Batch(batch_size, 8, 8), devices)
    assert (batch_size, batch_size) in pairs
    assert all(decode % prefill == 0 and 1 <= decode <= batch_size for prefill, decode in pairs)
    assert len(set(pairs)) == len(pairs)


def test_the_table_has_a_cell_for_every_kind_device_option_and_size() -> None:
    graph, cluster = llama_graph(), two_cpus()
    costs = derive_costs(graph, cluster, WORKLOAD, parse_precisions("16,w8a16,w4a16"), "bfloat16", "local")
    sizes = micro_batch_sizes(WORKLOAD, 2)
    for phase, micro_batch in {("prefill", p) for p, _ in sizes} | {("decode", d) for _, d in sizes}:
        cells = costs.phase(phase, micro_batch).layer_s
        assert [len(kind) for kind in cells] == [2]
        assert all(
            len(device) == 3 and all(cell is not None and cell > 0 for cell in device) for kind in cells for device in kind
        )
    assert costs.layer_bytes[0][0] > costs.layer_bytes[0][1] > costs.layer_bytes[0][2]
    assert costs.first_bytes == 512 * 128 * 2


def test_a_cell_that_the_engine_cannot_run_is_empty() -> None:
    """vLLM V1 has no attention backend for V100 (sm70), so nothing can be planned on it."""
    costs = derive_costs(llama_graph(), Cluster.load("1xT4,1xV100-32"), WORKLOAD, parse_precisions("16,w4a16"), "float16", "vllm")
    (kind,) = costs.decode[0].layer_s
    assert all(cell is not None for cell in kind[0])
    assert kind[1] == (None, None)


def test_more_speed_or_bandwidth_never_costs_time() -> None:
    cluster = two_cpus()
    faster = replace(cluster, devices=tuple(replace(device, speed=device.speed * 2) for device in cluster.devices))
    before, after = (
        derive_costs(llama_graph(), c, WORKLOAD, parse_precisions("16,w4a16"), "bfloat16", "local") for c in (cluster, faster)
    )
    for old, new in zip(before.decode, after.decode):
        for cells in zip(old.layer_s[0], new.layer_s[0]):
            assert all(b is not None and a is not None and a < b for b, a in zip(*cells))


def test_costs_say_which_devices_rest_on_measurements() -> None:
    def provenance(cluster: str, precisions: str, engine: str = "vllm") -> str:
        return derive_costs(
            llama_graph(), Cluster.load(cluster), WORKLOAD, parse_precisions(precisions), "bfloat16", engine
        ).provenance

    assert provenance("1xL4", "16,w4a16") == "roofline"
    assert provenance("1xA100-80", "16,w4a16") == "table"
    assert provenance("1xA100-80,2xL4", "16,w8a8") == "A100-80: table, L4: roofline"
    assert provenance("1xH100", "16,w4a16") == "table, w4a16 by roofline"
    assert provenance("1xH100", "16,w4a16", "local") == "table"


def test_speed_by_table_is_not_monotone_in_bits_and_unpacking_always_costs() -> None:
    """A100: four bits halve decode at one token and slow prefill down; unpacked at run time they never help."""
    a100 = Cluster.load("1xA100-80").devices[0]
    kind = llama_kind(hidden=4096, ffn=11008, head_dim=128, kv_heads=32)

    def seconds(precision: str, tokens: int, engine: str) -> float:
        return layer_latency_s(a100, kind, PRECISIONS[precision], 1, tokens, tokens, "bfloat16", engine)

    assert seconds("w4a16", 1, "vllm") < seconds("16", 1, "vllm") < seconds("w4a16", 1, "local")
    assert seconds("w8a8", 4096, "vllm") < seconds("16", 4096, "vllm") < seconds("w4a16", 4096, "vllm")


def test_half_the_speed_takes_twice_the_time_by_table_too() -> None:
    whole = Cluster.load("1xA100-80").devices[0]
    times = [
        layer_latency_s(d, llama_kind(), PRECISIONS["16"], 4, 16, 16, "bfloat16", "local")
        for d in (whole, replace(whole, speed=0.5))
    ]
    assert times[1] == pytest.approx(2 * times[0])


def test_latent_attention_caches_little_and_expands_every_position_that_it_sees() -> None:
    """DeepSeek-V3: 512 latent values and 64 rotated keys of a token, from which every step makes 128 heads of 192 + 128."""
    kind = layer_graph_of(resolve("deepseek-v3", weights=False)).kinds[0]
    device = Cluster.load("1xA100-80").devices[0]
    assert kind.kv_bytes_per_token == 2 * (512 + 64)
    expansion = next(op for op in kind.ops.ops if op.weights and op.weights[0].name == "self_attn.kv_b_proj.weight")
    assert expansion.flops(1, 4096, 8) == 2 * 8 * 4096 * 512 * 128 * (128 + 128)
    (heads,) = [op.heads for op in kind.ops.ops if op.heads is not None]
    assert heads.flops(1, 4096, 8) == 2 * 8 * 4096 * 128 * (192 + 128)
    seconds = [layer_latency_s(device, kind, PRECISIONS["16"], 8, 1, context, "bfloat16", "local") for context in (512, 4096)]
    by_products = (expansion.flops(1, 4096, 8) - expansion.flops(1, 512, 8)) / 312e12  # at the peak of the card
    assert seconds[1] - seconds[0] > by_products


@pytest.mark.parametrize("device", ["T4", "A100-80", "CPU"])
@pytest.mark.parametrize("precision", ["16", "w8a16", "w4a16"])
def test_experts_cost_what_those_cost_that_are_reached(device: str, precision: str) -> None:
    """One token that goes to one expert of eight reads, and unpacks, the weight of one; many tokens those of all eight."""
    one = Linear("mlp.up_proj", 2048, 1024, False, "mlp", "mlp.up_proj")
    eight = replace(one, experts=8, active_experts=1, pieces=("up_proj",))
    (on,) = Cluster.load(f"1x{device}").devices

    def seconds(linear: Linear, tokens: int) -> float:
        return linear_latency_s(on, linear, PRECISIONS[precision], tokens, "float16", "local")

    assert seconds(eight, 1) == pytest.approx(seconds(one, 1), rel=1e-6)
    assert 4 * seconds(one, 1) < seconds(eight, 64) < 9 * seconds(one, 64)


def test_a_mixture_that_no_device_of_the_cluster_holds_at_16_bits_is_planned_with_quantized_experts() -> None:
    cluster, workload = Cluster.load("1xH100"), Batch(2, 128, 16)
    with pytest.raises(InfeasibleError):
        plan("mixtral-8x7b", cluster, workload, precisions="16")
    made = plan("mixtral-8x7b", cluster, workload, precisions="16,w8a16,w4a16").plan
    assert made is not None and {"w8a16", "w4a16"} & set(made.options)
    (memory,) = made.prediction.memory
    assert memory.total <= cluster.devices[0].capacity_bytes < 2 * 46_702_792_704
