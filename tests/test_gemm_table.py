"""GEMM tables: held-out shapes and lines, interpolation, bands, fallback and errors."""

from functools import cache
from importlib.resources import files

import numpy as np
import pytest

from llmpq.costs import gemm_band, gemm_estimate, gemm_latency_s
from llmpq.costs.band import ROOFLINE_16_BIT
from llmpq.costs.gaussian_process import TERMS
from llmpq.costs.gemm_table import LARGE, GemmTable, Measurements, condition_table, fit_kernels, gemm_bands, interpolate
from llmpq.costs.lookup import COLD_READ, gemm_seconds
from llmpq.costs.shipped import load_gemm_table
from llmpq.costs.silicon import arrays, systems
from llmpq.errors import ClusterError, InputError
from llmpq.hardware.devices import device_types

TABLES = tuple(tuple(name.split("/")[:2]) for name in arrays("gemm") if name.endswith("/latency"))


def conditioned(whole: GemmTable, measured: Measurements) -> GemmTable:
    """A part of the table alone, its kernels fitted to that part."""
    kernels = fit_kernels(whole.hardware, whole.roofline, measured)
    return condition_table(whole.hardware, whole.roofline, kernels, measured)


@cache
def half_split(system: str, dtype: str) -> tuple[GemmTable, Measurements]:
    """A table conditioned on half of the shapes, and the measurements of the large shapes of the other half."""
    whole = load_gemm_table(system, dtype)
    chosen = np.random.default_rng(3).random(len(whole.measured.shapes)) < 0.5
    table = conditioned(whole, whole.measured.rows(chosen))
    return table, whole.measured.rows(~chosen & (whole.measured.shapes.min(axis=1) >= LARGE))


def flat(measured: Measurements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    m, n, k = np.broadcast_arrays(measured.tokens[None, :], measured.shapes[:, :1], measured.shapes[:, 1:])
    return m.ravel(), n.ravel(), k.ravel()


@pytest.mark.parametrize(("system", "dtype"), [("a100_sxm", "bfloat16"), ("h200_sxm", "fp8"), ("l40s", "int8_wo")])
def test_shapes_that_were_left_out_are_predicted_within_a_few_percent(system: str, dtype: str) -> None:
    table, held = half_split(system, dtype)
    error = np.abs(table.latency_s(*flat(held)) / held.latency_s.ravel() - 1)
    assert error.mean() < 0.06
    assert np.median(error) < 0.035


@pytest.mark.parametrize(("system", "dtype"), [("a100_sxm", "bfloat16"), ("h200_sxm", "fp8"), ("l40s", "int8_wo")])
def test_the_band_holds_nine_in_ten_of_the_shapes_left_out(system: str, dtype: str) -> None:
    table, held = half_split(system, dtype)
    low, high = (gemm_bands(table).factors(table, *flat(held)) * table.latency_s(*flat(held))[:, None]).T
    seconds = held.latency_s.ravel()
    assert 0.83 <= np.mean((low <= seconds) & (seconds <= high)) <= 0.96


def test_an_m_that_was_left_out_is_predicted_inside_a_wider_band() -> None:
    whole = load_gemm_table("h200_sxm", "bfloat16")
    left_out = np.isin(whole.measured.tokens, [8, 96, 512])
    table = conditioned(whole, whole.measured.columns(~left_out))
    held = whole.measured.columns(left_out)
    predicted = table.latency_s(*flat(held))
    assert np.mean(np.abs(predicted / held.latency_s.ravel() - 1)) < 0.08
    bands = gemm_bands(table)
    m, n, k = np.array([96.0, 128.0]), np.full(2, 4096.0), np.full(2, 4096.0)
    (off_low, off_high), (on_low, on_high) = bands.factors(table, m, n, k)
    assert off_low < on_low < 1 < on_high < off_high


@pytest.mark.parametrize(("system", "dtype"), TABLES)
def test_measured_points_come_back_to_within_their_noise(system: str, dtype: str) -> None:
    table = load_gemm_table(system, dtype)
    large = table.measured.rows(table.measured.shapes.min(axis=1) >= LARGE)
    error = np.abs(table.latency_s(*flat(large)) / large.latency_s.ravel() - 1)
    assert np.median(error) < 0.02


@pytest.mark.parametrize(("system", "dtype"), TABLES)
def test_every_table_stores_a_weight_for_each_term_at_each_range_of_m(system: str, dtype: str) -> None:
    kernels = arrays("gemm")[f"{system}/{dtype}/kernels"]
    assert kernels.shape == (4, len(TERMS))
    assert (kernels > 0).all()


def test_a_table_may_have_no_m_in_some_of_the_ranges() -> None:
    whole = load_gemm_table("l40s", "sq")
    few = conditioned(whole, whole.measured.columns(whole.measured.tokens <= 8))
    assert np.isfinite(few.latency_s(np.array([6.0]), np.array([4096.0]), np.array([4096.0]))).all()


def test_between_two_measured_m_latency_lies_between_theirs_and_beyond_the_last_it_grows() -> None:
    assert interpolate(np.array([0.0, 1.0]), np.array([[2.0, 4.0]] * 3), np.array([0.0, 0.25, 1.0])).tolist() == [2.0, 2.5, 4.0]
    at, between, after, beyond = gemm_latency_s("H200", "bf16", [1024, 1500, 2048, 65536], 8192, 8192)
    assert at < between < after
    assert beyond == pytest.approx(8 * gemm_latency_s("H200", "bf16", 8192, 8192, 8192), rel=0.1)


def test_arguments_broadcast_and_a_scalar_gives_a_scalar() -> None:
    grid = gemm_latency_s("A100-80", "w4a16", [[1], [64]], [4096, 8192, 12288], 4096)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == pytest.approx(gemm_latency_s("A100-80", "w4a16", 64, 12288, 4096))
    assert gemm_latency_s("A100-80", "w4a16", 64, 12288, 4096).shape == ()


def test_few_tokens_gain_from_four_bits_and_many_do_not() -> None:
    """Speed is not monotone in bits: A100 12288 x 4096 measured 0.067 against 0.025 ms at m = 1, 1.61 against 1.65 at 4096."""
    sixteen, four = (gemm_latency_s("A100-80", precision, [1, 4096], 12288, 4096) for precision in ("bf16", "w4a16"))
    assert four[0] < 0.5 * sixteen[0]
    assert four[1] > sixteen[1]


def test_names_of_precisions_and_of_systems_are_interchangeable() -> None:
    assert gemm_latency_s("A100-80", "16", 8, 4096, 4096) == gemm_latency_s("a100_sxm", "bfloat16", 8, 4096, 4096)


def test_a_card_with_less_bandwidth_than_its_measured_twin_is_slower_where_memory_bounds_it() -> None:
    small, large = (gemm_latency_s(name, "bf16", [1, 8192], 16384, 16384) for name in ("A100-40", "A100-80"))
    assert small[0] / large[0] == pytest.approx(2039 / 1555, rel=0.05)
    assert small[1] / large[1] == pytest.approx(1, abs=0.02)
    assert "scaled by bandwidth" in gemm_estimate("A100-40", "bf16", 1, 4096, 4096).provenance


def test_a_device_without_a_table_is_predicted_by_roofline_with_a_wide_band() -> None:
    estimate = gemm_estimate("T4", "bf16", [1, 512], 4096, 4096)
    assert estimate.provenance == "roofline"
    assert np.allclose(estimate.low_s / estimate.latency_s, ROOFLINE_16_BIT.low)
    assert gemm_estimate("H100", "w4a16", 1, 4096, 4096).provenance == "roofline"
    assert gemm_estimate("H100", "fp8", 1, 4096, 4096).provenance == "table of h100_sxm (SGLang 0.5.6.post2)"


def test_bands_enclose_the_prediction() -> None:
    low, high = gemm_band("L40S", "w8a8", [1, 17, 300], 4096, [4096, 4097, 11008])
    seconds = gemm_latency_s("L40S", "w8a8", [1, 17, 300], 4096, [4096, 4097, 11008])
    assert np.all((low < seconds) & (seconds < high))


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'w5a16' is unknown; GEMM tables know bf16, .*w4a16"):
        gemm_latency_s("A100-80", "w5a16", 1, 1024, 1024)
    with pytest.raises(ClusterError, match=r"'A1000'.*known are T4"):
        gemm_latency_s("A1000", "bf16", 1, 1024, 1024)


def test_a_layer_never_reads_its_weights_faster_than_memory_allows() -> None:
    """The benchmark found 1024 x 8192 in the level-2 cache of the L40S; the layers of a model have driven it out."""
    l40s = device_types()["L40S"]
    warm = gemm_latency_s("L40S", "bf16", 1, 8192, 1024)
    cold, large = (gemm_seconds(l40s, "16", 1, n, k) for n, k in ((8192, 1024), (16384, 16384)))
    assert cold is not None
    assert cold == pytest.approx(2 * 8192 * 1024 / (COLD_READ * 864e9))
    assert warm < cold
    assert large == pytest.approx(float(gemm_latency_s("L40S", "bf16", 1, 16384, 16384)))
    assert gemm_seconds(device_types()["T4"], "16", 1, 8192, 1024) is None


def test_every_table_names_its_engine_source_and_licence() -> None:
    folder = files("llmpq") / "data" / "silicon"
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "aiconfigurator" in (folder / "README.md").read_text()
    assert {system for system, _ in TABLES} == set(systems())
    for system in systems().values():
        assert system.engine.split()[0] in ("TensorRT-LLM", "SGLang")
        assert "aiconfigurator" in system.source
        assert system.licence.startswith("Apache-2.0")
