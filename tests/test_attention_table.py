"""Attention tables: held-out heads, contexts between measured ones, bands, fallback and errors."""

from dataclasses import replace

import numpy as np
import pytest

from llmpq.costs import attention_estimate, attention_latency_s
from llmpq.costs.attention_table import attention_bands, attention_table
from llmpq.costs.lookup import COLD_READ, attention_seconds
from llmpq.costs.shipped import load_attention_table
from llmpq.errors import InputError
from llmpq.hardware.devices import device_types


@pytest.mark.parametrize(
    "name", ["a100_sxm/prefill/bfloat16/bfloat16/128", "a100_sxm/decode/bfloat16/bfloat16/128", "l40s/decode/bfloat16/fp8/64"]
)
def test_heads_that_were_left_out_are_predicted_within_five_percent_and_inside_the_band(name: str) -> None:
    whole = load_attention_table(name)
    points = whole.measured.points
    held = np.isin(points[:, 2] * 1000 + points[:, 3], [32008, 16002, 64008])
    table = attention_table(whole.hardware, whole.roofline, whole.measured.rows(~held))
    points, seconds = points[held], whole.measured.latency_s[held]
    predicted = table.latency_s(points, points[:, 1] if "prefill" in name else np.ones(len(points)))
    assert held.sum() > 200
    assert np.mean(np.abs(predicted / seconds - 1)) < 0.05
    low, high = (attention_bands(table).factors(table, points) * predicted[:, None]).T
    assert np.mean((low <= seconds) & (seconds <= high)) > 0.85


def test_measured_points_come_back() -> None:
    table = load_attention_table("l40s/decode/bfloat16/bfloat16/128")
    sample = slice(0, None, 17)
    points = table.measured.points[sample]
    error = np.abs(table.latency_s(points, np.ones(len(points))) / table.measured.latency_s[sample] - 1)
    assert np.median(error) < 0.01


def test_a_group_of_heads_that_was_never_measured_has_the_wider_band() -> None:
    """Qwen2.5-7B: 28 heads over 4."""
    known, other = (attention_estimate("A100-80", "decode", 8, 1, 1024, heads, 4, 128) for heads in (32, 28))
    assert other.high_s / other.low_s > known.high_s / known.low_s


def test_a_context_between_two_measured_ones_costs_between_them() -> None:
    first, between, second = attention_latency_s("A100-80", "decode", 32, 1, [4096, 6000, 8192], 32, 8, 128)
    assert first < between < second


def test_arguments_broadcast() -> None:
    grid = attention_latency_s("L40S", "prefill", [[1], [4]], [128, 512, 2048], [128, 512, 2048], 32, 8, 128)
    assert grid.shape == (2, 3)
    assert np.all(np.diff(grid, axis=1) > 0)


def test_a_prefix_adds_work_to_prefill() -> None:
    without, behind = attention_latency_s("A100-80", "prefill", 4, 512, [512, 4096], 32, 8, 128)
    assert behind > 3 * without


def test_provenance_says_table_or_roofline() -> None:
    assert attention_estimate("L40S", "decode", 8, 1, 1024, 32, 8, 128, "fp8").provenance.startswith("table of l40s")
    estimate = attention_estimate("H200", "decode", 8, 1, 1024, 32, 8, 128)
    assert estimate.provenance == "roofline"
    assert estimate.low_s < estimate.latency_s < estimate.high_s


def test_a_layer_never_reads_its_cache_faster_than_memory_allows() -> None:
    """The benchmark took 0.6 of the time that reading 2 GiB of keys and values once takes on an A100."""
    a100 = device_types()["A100-80"]
    nbytes = 64 * 8192 * 8 * 128 * 2 * 2
    assert a100.cache_efficiency is not None and a100.cache_efficiency < COLD_READ
    assert attention_seconds(a100, 64, 1, 8192, 32, 8, 128) == pytest.approx(nbytes / (a100.cache_efficiency * 2039e9))
    unmeasured = replace(a100, cache_efficiency=None)
    assert attention_seconds(unmeasured, 64, 1, 8192, 32, 8, 128) == pytest.approx(nbytes / (COLD_READ * 2039e9))
    assert attention_seconds(device_types()["T4"], 64, 1, 8192, 32, 8, 128) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("A100-80", "decode", 1, 2, 64, 32, 8, 128), "decode has one new token"),
        (("A100-80", "warmup", 1, 1, 64, 32, 8, 128), "known are prefill, decode"),
        (("A100-80", "prefill", 1, 65, 64, 32, 8, 128), "context is shorter than the new tokens"),
        (("A100-80", "prefill", 0, 64, 64, 32, 8, 128), "at least 1"),
        (("A100-80", "prefill", 1, 64, 64, 32, 8, 128, "int3"), "'int3' is unknown; known are bf16"),
    ],
)
def test_sizes_that_make_no_sense_are_errors(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention_latency_s(*arguments)  # type: ignore[arg-type]
