"""Evaluation: windows, means, divergence."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.evaluation import LogProbs, estimate, evaluate_text, token_losses, windows


@given(st.integers(2, 3000), st.integers(2, 600))
def test_every_token_but_the_first_is_scored_once_with_half_a_window_of_past(tokens: int, window: int) -> None:
    scored: list[int] = []
    for start, stop, first in windows(tokens, window):
        assert stop - start <= window
        assert start == 0 or first - start >= window // 2
        scored += range(first, stop)
    assert scored == list(range(1, tokens))


@given(st.integers(2, 3000), st.integers(2, 600), st.data())
def test_a_stride_of_any_length_scores_every_token_once(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    scored: list[int] = []
    for start, stop, first in windows(tokens, window, stride):
        assert stop - start <= window and first > start
        assert start == 0 or first - start >= window - stride
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


def bigram_of(seed: int, sharpness: float = 1.0) -> LogProbs:
    table = (torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)) * sharpness).log_softmax(-1)
    return lambda ids: table[torch.tensor(list(ids))]


def draw_text(count: int) -> list[int]:
    return torch.randint(16, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def test_the_increase_is_the_difference_of_two_losses_and_its_error_is_paired() -> None:
    ids, near, base = draw_text(2000), bigram_of(1, 1.01), bigram_of(1)
    result = evaluate_text(ids, near, base, window=64)
    alone = evaluate_text(ids, base, window=64)
    assert result.increase == pytest.approx(result.cross_entropy - alone.cross_entropy, abs=1e-6)
    assert result.increase_error is not None and result.cross_entropy_error is not None
    assert result.increase_error < result.cross_entropy_error / 10
    assert result.top1 == 1.0 and result.top1_error == 0.0
    assert (evaluate_text(ids, bigram_of(2), base, window=64).top1 or 0.0) < 0.5


def test_losses_one_after_the_other_give_the_same_increase() -> None:
    ids, near, base = draw_text(700), bigram_of(1, 1.1), bigram_of(1)
    pairs = zip(token_losses(ids, near, 64, 63), token_losses(ids, base, 64, 63), strict=True)
    found = estimate([mine - other for mine, other in pairs])
    together = evaluate_text(ids, near, base, 64, stride=63)
    assert found.mean == pytest.approx(together.increase, rel=1e-6)
    assert found.error == pytest.approx(together.increase_error, rel=1e-6)


def test_the_standard_error_is_the_spread_of_estimates_on_fresh_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(20, 100, generator=generator) + 5 for _ in range(200)]
    found = [estimate(list(sample), block=10) for sample in samples]
    spread = torch.tensor([each.mean for each in found]).std()
    claimed = torch.tensor([each.error or 0.0 for each in found]).mean()
    assert float(claimed) == pytest.approx(float(spread), rel=0.2)


def test_blocks_count_neighbours_that_move_together_as_one_draw() -> None:
    draws = torch.randn(50, generator=torch.Generator().manual_seed(0))
    repeated = estimate([draws.repeat_interleave(128)])
    assert repeated.error == pytest.approx(float(draws.double().std()) / 50**0.5, rel=1e-5)
    assert estimate([draws[:3]]).error is None


def test_a_stride_that_leaves_no_past_is_refused() -> None:
    with pytest.raises(InputError, match="stride 8 does not fit windows of 8 tokens; expected 1 to 7"):
        evaluate_text(draw_text(40), uniform, window=8, stride=8)


def test_progress_reaches_the_end() -> None:
    seen: list[int] = []
    evaluate_text(list(range(16)) * 4, uniform, window=16, advance=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 64


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        evaluate_text([1], uniform)
