"""GPTQ: against a slow textbook reference, and what must hold of its result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmpq.errors import QuantizationError
from llmpq.precision import PRECISIONS, Precision
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.gptq import gptq, passed_on
from llmpq.quantization.hessian import DAMPING, Factor
from llmpq.quantization.rounding import quantize, round_to

INTEGER = [PRECISIONS[name] for name in ("w8a8", "w8a16", "w4a16", "w3a16")]
by_name = pytest.mark.parametrize("precision", INTEGER, ids=lambda precision: precision.name)


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def hessian(columns: int, seed: int = 0, tokens: int = 300) -> Tensor:
    """Of correlated inputs whose columns differ in size."""
    x = weight(tokens, columns, seed) @ weight(columns, columns, seed + 1) * weight(1, columns, seed + 2)
    return x.t() @ x / tokens


def textbook(original: Tensor, precision: Precision, matrix: Tensor, scale: Tensor) -> Tensor:
    """Optimal brain quantization in a fixed order, in fp64: the whole inverse is updated after every column."""
    size, half = original.shape[1] // scale.shape[1], 2 ** (precision.num_bits - 1)
    remaining, steps = original.to(torch.float64), scale.to(torch.float64)
    damped = matrix.to(torch.float64) + DAMPING * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    codes = torch.zeros(original.shape, dtype=torch.int8)
    left = matrix.diagonal().argsort(descending=True, stable=True).tolist()
    while left:
        column = left.pop(0)
        step = steps[:, column // size]
        code = (remaining[:, column] / step).round().clamp(-half, half - 1)
        codes[:, column] = code.to(torch.int8)
        error = (remaining[:, column] - code * step) / inverse[column, column]
        remaining[:, left] -= torch.outer(error, inverse[column, left])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return codes


@by_name
@pytest.mark.parametrize("columns", [96, 256, 320])
def test_the_codes_are_those_of_the_textbook(precision: Precision, columns: int) -> None:
    original, matrix = weight(6, columns), hessian(columns, tokens=2 * columns)
    scale = quantize(original, precision).scale
    expected = textbook(original, precision, matrix, scale)
    found = passed_on(original, precision, Factor.of(matrix, 300), scale).codes
    # a value halfway between two codes may fall to either side in fp32, and at 8 bits the steps are finest
    assert float((found == expected).float().mean()) > (0.999 if precision.num_bits < 8 else 0.99)
    assert int((found.int() - expected.int()).abs().max()) <= 1


@by_name
@given(
    rows=st.integers(1, 4), columns=st.sampled_from([1, 7, 64, 160, 256]), seed=st.integers(0, 1000), tokens=st.integers(1, 400)
)
@settings(max_examples=15, deadline=None)
def test_no_row_is_worse_than_by_rounding_to_nearest(
    precision: Precision, rows: int, columns: int, seed: int, tokens: int
) -> None:
    original, matrix = weight(rows, columns, seed), hessian(columns, seed, tokens)
    factor = Factor.of(matrix, tokens)
    found = factor.loss(original - gptq(original, precision, factor).dequantize())
    for other in (quantize, quantize_clipped):
        assert bool((found <= factor.loss(original - other(original, precision).dequantize()) * (1 + 1e-4) + 1e-6).all())


@by_name
def test_correlated_inputs_make_it_much_better_than_rounding(precision: Precision) -> None:
    original, factor = weight(32, 256), Factor.of(hessian(256), 300)
    losses = [
        float(factor.loss(original - each.dequantize()).sum())
        for each in (gptq(original, precision, factor), quantize(original, precision))
    ]
    assert losses[0] < 0.6 * losses[1]


@by_name
def test_a_diagonal_hessian_gives_the_nearest_codes(precision: Precision) -> None:
    original, scale = weight(8, 256), quantize(weight(8, 256), precision).scale
    factor = Factor.of(torch.diag(weight(1, 256, 5)[0].abs()), 300)
    assert torch.equal(passed_on(original, precision, factor, scale).codes, round_to(original, precision, scale).codes)


def test_dead_columns_are_rounded_to_nearest_and_change_no_other() -> None:
    original, matrix = weight(8, 128), hessian(128)
    matrix[[5, 77]] = 0.0
    matrix[:, [5, 77]] = 0.0
    precision, factor = PRECISIONS["w4a16"], Factor.of(matrix, 300)
    scale = quantize(original, precision).scale
    found, nearest = passed_on(original, precision, factor, scale), round_to(original, precision, scale)
    assert torch.equal(found.codes[:, [5, 77]], nearest.codes[:, [5, 77]])
    other = original.clone()
    other[:, [5, 77]] *= 0.3
    rest = [column for column in range(128) if column not in (5, 77)]
    assert torch.equal(passed_on(other, precision, factor, scale).codes[:, rest], found.codes[:, rest])


def test_one_factor_serves_every_width_and_more_bits_lose_less() -> None:
    original, factor = weight(16, 256), Factor.of(hessian(256), 300)
    losses = [
        float(factor.loss(original - gptq(original, PRECISIONS[name], factor).dequantize()).sum())
        for name in ("w3a16", "w4a16", "w8a16")
    ]
    assert losses[0] > 2 * losses[1] > 20 * losses[2]


def test_rows_do_not_depend_on_each_other_so_that_fused_weights_can_be_stacked() -> None:
    original, factor, precision = weight(24, 128), Factor.of(hessian(128), 300), PRECISIONS["w4a16"]
    whole, part = gptq(original, precision, factor), gptq(original[8:16], precision, factor)
    assert torch.equal(whole.codes[8:16], part.codes) and torch.equal(whole.scale[8:16], part.scale)


def test_a_weight_of_nan_is_refused() -> None:
    with pytest.raises(QuantizationError, match="1 values that are NaN"):
        gptq(torch.tensor([[1.0, torch.nan]]), PRECISIONS["w4a16"], Factor.of(torch.eye(2), 5))
