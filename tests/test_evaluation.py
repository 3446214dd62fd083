"""Evaluation: windows, means, divergence."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.evaluation import evaluate_text, windows


@given(st.integers(2, 3000), st.integers(2, 600))
def test_every_token_but_the_first_is_scored_once_with_half_a_window_of_past(tokens: int, window: int) -> None:
    scored: list[int] = []
    for start, stop, first in windows(tokens, window):
        assert stop - start <= window
        assert start == 0 or first - start >= window // 2
        scored += range(first, stop)
    assert scored == list(range(1, tokens))


def uniform(ids: Sequence[int]) -> torch.Tensor:
    return torch.full((len(ids), 16), -math.log(16))


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    result = evaluate_text(list(range(16)) * 10, uniform, window=32)
    assert result.cross_entropy == pytest.approx(math.log(16))
    assert result.perplexity == pytest.approx(16)
    assert result.tokens == 159
    assert result.kl is None


def test_divergence_from_itself_is_zero_and_from_another_model_positive() -> None:
    def peaked(ids: Sequence[int]) -> torch.Tensor:
        logits = torch.zeros(len(ids), 16)
        logits[:, 3] = 2.0
        return logits.log_softmax(-1)

    ids = list(range(16)) * 4
    assert evaluate_text(ids, uniform, uniform).kl == pytest.approx(0.0, abs=1e-6)
    expected = float((peaked([0])[0].exp() * (peaked([0])[0] - uniform([0])[0])).sum())
    assert evaluate_text(ids, uniform, peaked).kl == pytest.approx(expected, rel=1e-5)


def test_windows_give_what_one_pass_gives_when_the_text_is_short() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(16, 16, generator=generator).log_softmax(-1)
    ids = torch.randint(16, (40,), generator=generator).tolist()

    def bigram(tokens: Sequence[int]) -> torch.Tensor:
        return table[torch.tensor(list(tokens))]

    direct = -sum(float(table[a, b]) for a, b in pairwise(ids)) / (len(ids) - 1)
    for window in (8, 16, 64):
        assert evaluate_text(ids, bigram, window=window).cross_entropy == pytest.approx(direct, rel=1e-5)


def test_progress_reaches_the_end() -> None:
    seen: list[int] = []
    evaluate_text(list(range(16)) * 4, uniform, window=16, advance=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 64


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        evaluate_text([1], uniform)
