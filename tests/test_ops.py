"""The owned functions of traced graphs, against transformers and against a loop over positions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmpq.fx import ops
from llmpq.runtime.kv_cache import PassingCache


class Past:
    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def slow_mask(padding: Tensor, past: int, tokens: int, window: int | None) -> list[list[list[bool]]]:
    """[batch][query][key]: real, not in the future, and within the window."""

    def sees(row: Tensor, query: int, key: int) -> bool:
        return bool(row[key]) and key <= query and (window is None or query - key < window)

    return [[[sees(row, query, key) for key in range(past + tokens)] for query in range(past, past + tokens)] for row in padding]


@st.composite
def passes(draw: st.DrawFn) -> tuple[Tensor, int, int, int | None]:
    batch, past, tokens = (draw(st.integers(low, 5)) for low in (1, 0, 1))
    padding = torch.tensor(
        [
            [int(key >= pad) for key in range(past + tokens)]
            for pad in draw(st.lists(st.integers(0, 4), min_size=batch, max_size=batch))
        ]
    )
    return padding, past, tokens, draw(st.none() | st.integers(1, 6))


@settings(max_examples=150, deadline=None)
@given(passes())
def test_the_mask_says_for_each_pair_what_the_loop_says(case: tuple[Tensor, int, int, int | None]) -> None:
    padding, past, tokens, window = case
    expected = torch.tensor(slow_mask(padding, past, tokens, window))
    hidden = torch.zeros(len(padding), tokens, 3)
    mask = ops.attention_mask(padding, hidden, Past(past), window, materialize=True)
    assert mask is not None and torch.equal(mask[:, 0], expected)
    added = ops.attention_mask(padding, hidden, Past(past), window, "eager")
    assert added is not None and torch.equal(added[:, 0], torch.where(expected, 0.0, torch.finfo(torch.float32).min))


@settings(max_examples=150, deadline=None)
@given(passes())
def test_no_mask_is_returned_exactly_where_torch_would_make_the_same_one(case: tuple[Tensor, int, int, int | None]) -> None:
    """is_causal aligns queries with the first keys; a single query without mask sees every key."""
    padding, past, tokens, window = case
    if ops.attention_mask(padding, torch.zeros(len(padding), tokens, 3), Past(past), window) is None:
        expected = torch.tensor(slow_mask(padding, past, tokens, window))
        implied = torch.ones(tokens, past + tokens).tril() > 0 if tokens > 1 else torch.ones(1, past + tokens) > 0
        assert torch.equal(expected, implied.expand_as(expected))


@pytest.mark.parametrize(("past", "tokens"), [(0, 4), (0, 1), (5, 1)])
def test_unpadded_prefill_and_decode_need_no_mask(past: int, tokens: int) -> None:
    assert ops.attention_mask(torch.ones(2, past + tokens), torch.zeros(2, tokens, 3), Past(past)) is None
    assert ops.attention_mask(None, torch.zeros(2, tokens, 3), Past(past)) is None


def test_on_meta_a_mask_is_made_because_padding_cannot_be_looked_up() -> None:
    mask = ops.attention_mask(torch.ones(2, 4, device="meta"), torch.zeros(2, 4, 3, device="meta"), PassingCache())
    assert mask is not None and mask.shape == (2, 1, 4, 4) and mask.is_meta


def test_the_eager_mask_has_the_type_of_the_hidden_state() -> None:
    mask = ops.attention_mask(None, torch.zeros(1, 2, 3, dtype=torch.bfloat16), Past(0), implementation="eager")
    assert mask is not None and mask.dtype == torch.bfloat16 and mask[0, 0, 0, 1] == torch.finfo(torch.bfloat16).min


def test_a_dense_mask_covers_past_and_present() -> None:
    positions = torch.zeros(2, 3, dtype=torch.long)
    given_mask = torch.zeros(2, 8)
    assert ops.dense_mask(given_mask, positions, Past(5)) is given_mask
    assert torch.equal(ops.dense_mask(None, positions, Past(5)), torch.ones(2, 8, dtype=torch.long))


@settings(max_examples=60, deadline=None)
@given(passes())
def test_chunks_are_counted_from_the_first_real_token(case: tuple[Tensor, int, int, int | None]) -> None:
    padding, past, tokens, chunk = case
    chunk = chunk or 2
    padding[:, -1] = 1
    left = [int((row.cumsum(-1) == 0).sum()) for row in padding]
    causal = torch.tensor(slow_mask(padding, past, tokens, None))
    same = torch.tensor(
        [
            [
                [(query - pad) // chunk == (key - pad) // chunk for key in range(past + tokens)]
                for query in range(past, past + tokens)
            ]
            for pad in left
        ]
    )
    mask = ops.attention_mask(padding, torch.zeros(len(padding), tokens, 3), Past(past), materialize=True, chunk=chunk)
    assert mask is not None and torch.equal(mask[:, 0], causal & same)


def test_an_encoder_sees_both_ways_and_needs_no_mask_without_padding() -> None:
    assert ops.attention_mask(torch.ones(2, 4), torch.zeros(2, 4, 3), None, causal=False) is None
    padding = torch.tensor([[1, 1, 0]])
    mask = ops.attention_mask(padding, torch.zeros(1, 3, 3), None, causal=False)
    assert mask is not None and torch.equal(mask[0, 0], torch.tensor([[True, True, False]] * 3))
