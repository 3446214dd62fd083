"""Agreement: rank correlation, typical factors, mixtures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmpq.precision import parse_precisions
from llmpq.quantization.agreement import draw_mixtures, rank_correlation, typical_factor

VALUES = st.lists(st.integers(-10, 10).map(float), min_size=2, max_size=12)


@given(VALUES)
def test_rank_correlation_sees_order_alone(values: list[float]) -> None:
    if len(set(values)) > 1:
        assert rank_correlation(values, [2 * value + 1 for value in values]) == pytest.approx(1.0)
        assert rank_correlation(values, [-value for value in values]) == pytest.approx(-1.0)
    else:
        assert rank_correlation(values, values) == 0.0


def test_rank_correlation_is_spearmans_with_ties() -> None:
    left, right = [1.0, 2.0, 2.0, 4.0], [3.0, 1.0, 5.0, 5.0]
    ranks = torch.tensor([[0.0, 1.5, 1.5, 3.0], [1.0, 0.0, 2.5, 2.5]])
    assert rank_correlation(left, right) == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))


def test_the_typical_factor_is_symmetric_and_one_for_equal_values() -> None:
    assert typical_factor([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert typical_factor([2.0, 8.0], [1.0, 4.0]) == typical_factor([1.0, 4.0], [2.0, 8.0]) == pytest.approx(2.0)
    assert typical_factor([1.0, 4.0], [1.0, 1.0]) == pytest.approx(math.exp(math.log(4) / math.sqrt(2)))
    assert typical_factor([0.0], [1.0]) == 1.0


def test_mixtures_are_seeded_and_differ() -> None:
    precisions = parse_precisions("16,w8a16,w4a16")
    mixtures = draw_mixtures(precisions, 12)
    assert mixtures == draw_mixtures(precisions, 12) and len({tuple(mixture) for mixture in mixtures}) == len(mixtures)
    assert all(len(mixture) == 12 and set(mixture) <= set(precisions) for mixture in mixtures)
