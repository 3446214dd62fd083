"""Sampling: greedy, truncated, seeded; independent of the rows beside."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmpq.errors import InputError
from llmpq.generation import SamplingParams
from llmpq.runtime.sampling import sample, token_log_probs, uniform


def logits_of(rows: int, vocab: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def kept_by_hand(logits: Tensor, params: SamplingParams) -> dict[int, float]:
    """Token -> probability after top-k and top-p, straight from their definitions."""
    probabilities = (logits.double() / params.temperature).softmax(-1).tolist()
    ranked = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    ranked = ranked[: params.top_k or None]
    total = sum(probabilities[token] for token in ranked)
    kept, mass = {}, 0.0
    for token in ranked:
        if mass >= params.top_p * total:
            break
        kept[token] = probabilities[token]
        mass += probabilities[token]
    return {token: value / mass for token, value in kept.items()}


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = logits_of(5)
    assert sample(logits, SamplingParams(1), range(5), [0] * 5).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1, temperature=1.0),
        SamplingParams(1, temperature=0.7, top_k=5),
        SamplingParams(1, temperature=1.3, top_p=0.6),
        SamplingParams(1, temperature=1.0, top_k=8, top_p=0.8),
        SamplingParams(1, temperature=1.0, top_p=1e-9),
        SamplingParams(1, temperature=1.0, top_k=1000),
    ],
)
def test_draws_follow_the_truncated_distribution(params: SamplingParams) -> None:
    logits, draws = logits_of(1), 4000
    tokens = sample(logits.expand(draws, -1), params, range(draws), [0] * draws).tolist()
    expected = kept_by_hand(logits[0], params)
    assert set(tokens) <= set(expected)
    for token, probability in expected.items():
        deviation = (probability * (1 - probability) / draws) ** 0.5
        assert abs(tokens.count(token) / draws - probability) <= 5 * deviation + 1e-9


@given(st.permutations(range(6)), st.integers(1, 6), st.integers(0, 3))
def test_a_row_draws_the_same_whatever_stands_beside_it(order: list[int], cut: int, step: int) -> None:
    logits, params = logits_of(6), SamplingParams(1, temperature=1.0, top_p=0.9, seed=3)
    together = sample(logits, params, range(6), [step] * 6).tolist()
    picked = order[:cut]
    assert sample(logits[picked], params, picked, [step] * len(picked)).tolist() == [together[row] for row in picked]


def test_other_seeds_steps_and_sequences_draw_other_numbers() -> None:
    drawn = [uniform(seed, sequence, step) for seed in range(5) for sequence in range(5) for step in range(5)]
    assert len(set(drawn)) == 125
    assert all(0 <= number < 1 for number in drawn)
    assert drawn[0] == uniform(0, 0, 0)


def test_the_uniform_numbers_are_spread_evenly() -> None:
    drawn = [uniform(0, 0, step) for step in range(4000)]
    for tenth in range(10):
        share = sum(tenth / 10 <= number < (tenth + 1) / 10 for number in drawn) / len(drawn)
        assert abs(share - 0.1) < 0.025


def test_log_probs_are_those_of_the_plain_softmax() -> None:
    logits, tokens = logits_of(4), torch.tensor([3, 1, 4, 39])
    expected = logits.log_softmax(-1)[torch.arange(4), tokens]
    assert torch.allclose(token_log_probs(logits, tokens), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 1, "temperature": -0.5}, "temperature is -0.5"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 1, "top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p is 0.0; it must be above 0"),
    ],
)
def test_senseless_parameters_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingParams(**arguments)
