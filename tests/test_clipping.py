"""Clipping: the squared error of rounding falls, and the scale is the best of those tried."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.errors import QuantizationError
from llmpq.precision import PRECISIONS, Precision
from llmpq.quantization import clipping
from llmpq.quantization.clipping import clipped_scale, quantize_clipped
from llmpq.quantization.rounding import quantize, round_to, stored_scale

INTEGER = [PRECISIONS[name] for name in ("w8a8", "w8a16", "w4a16", "w3a16")]
by_name = pytest.mark.parametrize("precision", INTEGER, ids=lambda precision: precision.name)


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3


def errors(original: torch.Tensor, dequantized: torch.Tensor, groups: int) -> torch.Tensor:
    return (original - dequantized).square().view(len(original), groups, -1).sum(-1)


@by_name
@given(rows=st.integers(1, 5), groups=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_no_group_is_worse_than_with_the_largest_magnitude(precision: Precision, rows: int, groups: int, seed: int) -> None:
    original = weight(rows, 128 * groups, seed)
    clipped, plain = quantize_clipped(original, precision), quantize(original, precision)
    found = [errors(original, each.dequantize(), plain.scale.shape[1]) for each in (clipped, plain)]
    assert bool((found[0] <= found[1] * (1 + 1e-5)).all())


def test_at_few_bits_long_tails_are_cut() -> None:
    original = weight(8, 256)
    clipped, plain = (each(original, PRECISIONS["w3a16"]) for each in (quantize_clipped, quantize))
    assert bool((clipped.scale <= plain.scale).all()) and bool((clipped.scale < plain.scale).any())
    assert float((clipped.dequantize() - original).square().sum()) < float((plain.dequantize() - original).square().sum())


@by_name
def test_the_scale_is_the_best_of_those_tried_and_rows_do_not_depend_on_each_other(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weight(7, 64)
    found = clipped_scale(original, precision, torch.bfloat16)
    grouped = original.view(7, -1, precision.group_size_for(64)).abs().amax(-1)
    shares = torch.linspace(1.0, clipping.LOWEST_SHARE[precision.num_bits], clipping.STEPS)
    tried = [stored_scale(grouped * share, precision, torch.bfloat16) for share in shares]
    each = [errors(original, round_to(original, precision, scale).dequantize(), found.shape[1]) for scale in tried]
    best = errors(original, round_to(original, precision, found).dequantize(), found.shape[1])
    torch.testing.assert_close(best, torch.stack(each).amin(0))
    monkeypatch.setattr(clipping, "CHUNK", 64)
    assert torch.equal(clipped_scale(original, precision, torch.bfloat16), found)


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(QuantizationError, match="expected a float matrix"):
        quantize_clipped(torch.zeros(3), PRECISIONS["w4a16"])
