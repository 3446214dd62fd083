"""Rounding to nearest: error bounds, the convention of compressed-tensors, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.errors import QuantizationError
from llmpq.precision import PRECISIONS, Precision
from llmpq.quantization.rounding import quantize, quantize_activation_per_token

INTEGER = [PRECISIONS[name] for name in ("w8a8", "w8a16", "w4a16", "w3a16")]
by_name = pytest.mark.parametrize("precision", INTEGER, ids=lambda precision: precision.name)


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@by_name
@given(rows=st.integers(1, 5), columns=st.integers(1, 300), seed=st.integers(0, 1000), spread=st.sampled_from([1e-6, 0.02, 30.0]))
@settings(max_examples=30, deadline=None)
def test_every_weight_is_within_half_a_scale_or_clipped_by_the_rounding_of_the_scale(
    precision: Precision, rows: int, columns: int, seed: int, spread: float
) -> None:
    original = weight(rows, columns, seed) * spread
    quantized = quantize(original, precision)
    half = 2 ** (precision.num_bits - 1)
    scale = quantized.scale.float().repeat_interleave(quantized.group_size, dim=1)
    error = (quantized.dequantize() - original).abs() / scale
    clipped = original / scale > half - 0.5
    assert quantized.group_size == precision.group_size_for(columns)
    assert bool((error[~clipped] <= 0.5 + 1e-4).all())
    assert bool((error <= 0.5 + half / 256 + 1e-4).all())  # bf16 keeps 8 bits of the scale


@by_name
def test_codes_are_the_best_for_the_scale_that_is_stored(precision: Precision) -> None:
    original = weight(6, 256)
    quantized = quantize(original, precision)
    error = (quantized.dequantize() - original).abs()
    half = 2 ** (precision.num_bits - 1)
    for step in (-1, 1):
        shifted = (quantized.codes.int() + step).clamp(-half, half - 1).to(torch.int8)
        other = type(quantized)(precision, shifted, quantized.scale)
        assert bool(((other.dequantize() - original).abs() >= error - 1e-6).all())


@by_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_scales_codes_and_values_are_those_of_compressed_tensors(precision: Precision, dtype: torch.dtype) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize
    from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    original = weight(16, 256)
    quantized = quantize(original, precision, dtype)
    strategy, group = ("channel", None) if precision.group_size is None else ("group", precision.group_size)
    args = QuantizationArgs(num_bits=precision.num_bits, type="int", symmetric=True, strategy=strategy, group_size=group)
    grouped = original.view(16, -1, quantized.group_size)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    stored = scale.to(dtype)
    assert torch.equal(quantized.scale, stored)
    codes = their_quantize(original, stored.float(), zero_point, args, dtype=torch.int8)
    assert torch.equal(quantized.codes, codes)
    assert torch.equal(quantized.dequantize(dtype), their_dequantize(codes, stored, None, args))
    assert torch.equal(quantized.dequantize(), their_dequantize(codes, stored.float(), None, args))


@by_name
def test_rows_of_zeros_stay_zero_with_a_positive_scale(precision: Precision) -> None:
    quantized = quantize(torch.zeros(2, 128), precision, torch.float16)
    assert bool((quantized.scale > 0).all()) and not bool(quantized.dequantize().any())


def test_weights_that_are_not_finite_are_refused_with_their_number() -> None:
    broken = weight(2, 64)
    broken[0, 3], broken[1, 5] = float("nan"), float("inf")
    with pytest.raises(QuantizationError, match="2 values that are NaN or infinite"):
        quantize(broken, PRECISIONS["w4a16"])


def test_a_precision_without_codes_is_refused() -> None:
    with pytest.raises(QuantizationError, match="'16' has no codes"):
        quantize(weight(2, 64), PRECISIONS["16"])


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int8), torch.zeros(0, 4)])
def test_what_is_not_a_float_matrix_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(QuantizationError, match="expected a float matrix"):
        quantize(bad, PRECISIONS["w8a8"])


def test_a_scale_that_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"torch\.float16; use bfloat16"):
        quantize(torch.full((1, 32), 1e6), PRECISIONS["w4a16"], torch.float16)


def test_activations_are_rounded_per_token_as_a_slow_loop_does() -> None:
    x = weight(2 * 5, 48).view(2, 5, 48) * torch.logspace(-3, 3, 5).view(1, 5, 1)
    x[0, 2] = 0.0
    rounded = quantize_activation_per_token(x)
    for batch in range(2):
        for token in range(5):
            row = x[batch, token]
            scale = float(row.abs().max()) / 127 or 1.0
            expected = [round(value / scale) * scale for value in row.tolist()]
            torch.testing.assert_close(rounded[batch, token], torch.tensor(expected), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_activations_keeps_their_type_and_moves_them_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    x = weight(7, 96).to(dtype)
    rounded = quantize_activation_per_token(x)
    step = x.abs().amax(-1, keepdim=True).float() / 127
    assert rounded.dtype == dtype and not torch.equal(rounded, x)
    assert bool(((rounded.float() - x.float()).abs() <= step * (0.5 + 0.5 * (dtype == torch.bfloat16))).all())
