"""The functions that traced graphs call: what transformers decides from values while it runs, as one node."""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

MaskImplementation = Literal["sdpa", "eager"]


class HasLength(Protocol):
    def get_seq_length(self) -> int: ...


class WantsPositions(Protocol):
    @property
    def wants_every_position(self) -> bool: ...


def attention_mask(
    attention_mask: Tensor | None,
    hidden: Tensor,
    past_key_values: HasLength | None,
    window: int | None = None,
    implementation: MaskImplementation = "sdpa",
    materialize: bool = False,
    chunk: int | None = None,
    causal: bool = True,
) -> Tensor | None:
    """The mask of one pass over `hidden`, as transformers' attention implementations want it.

    attention_mask:  [batch, past + tokens], 1 for real tokens, 0 for padding before or behind them; None: none
    hidden:          [batch, tokens, ...]; only its shape, dtype and device are read
    past_key_values: gives the past length of the whole pass
    window:          each token sees itself and the `window` - 1 tokens before it; None: all before it
    chunk:           each token sees its own chunk of so many tokens, counted from the first real one; None: all
    causal:          False: tokens see those behind them too (encoders)
    returns:         "sdpa": None when plain causality is all there is (unless `materialize`), else bool
                     [batch, 1, tokens, past + tokens], True where attention is allowed;
                     "eager": the same as 0 and the lowest number of hidden's dtype, always made.

    Padding is looked up in the values, so on meta tensors a mask is always made.
    """
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    tokens, seen = hidden.shape[1], past + hidden.shape[1]
    padding = None if attention_mask is None else attention_mask[:, :seen].to(hidden.device, torch.bool)
    if implementation == "sdpa" and not materialize and _is_plain(padding, past, tokens, window or chunk, causal):
        return None
    queries = torch.arange(past, seen, device=hidden.device)[:, None]
    if padding is not None and causal and past > 0 and (window or chunk):
        queries = queries - _behind(padding)
    keys = torch.arange(seen, device=hidden.device)[None, :]
    allowed = keys <= queries if causal else torch.ones(tokens, seen, dtype=torch.bool, device=hidden.device)
    allowed = allowed if window is None else allowed & (keys > queries - window)
    mask = allowed.expand(hidden.shape[0], 1, tokens, seen)
    mask = mask if chunk is None else mask & _same_chunk(padding, queries, keys, chunk)
    mask = mask if padding is None else mask & padding[:, None, None, :]
    if implementation == "sdpa":
        return mask
    return torch.where(mask, torch.zeros((), device=hidden.device, dtype=hidden.dtype), torch.finfo(hidden.dtype).min)


def dense_mask(attention_mask: Tensor | None, position_ids: Tensor, past_key_values: HasLength) -> Tensor:
    """`attention_mask`, or where none is given ones [batch, past + tokens] for the [batch, tokens] of `position_ids`."""
    if attention_mask is not None:
        return attention_mask
    batch, tokens = position_ids.shape
    return torch.ones(batch, past_key_values.get_seq_length() + tokens, dtype=torch.long, device=position_ids.device)


def shared_states() -> dict[str, Any]:
    """The place where layers of one pass put keys and values that later layers read (Gemma 3n), empty at its start."""
    return {}


def wanted_positions(hidden: Tensor, past_key_values: WantsPositions) -> Tensor:
    """`hidden` [batch, tokens, ...] at the positions whose logits somebody reads: the last one, or all when scoring.

    A copy with strides of its own: a linear of a strided tensor of three dimensions goes a way on CPU that is a hundred times
    slower, and of a single sequence the last position counts as contiguous whatever its strides are.
    """
    return hidden if past_key_values.wants_every_position else hidden[:, -1:].clone(memory_format=torch.contiguous_format)


def _same_chunk(padding: Tensor | None, queries: Tensor, keys: Tensor, chunk: int) -> Tensor:
    """[batch or 1, 1, tokens, past + tokens]: whether query and key are of one chunk, counted behind the padding on the left."""
    left = torch.zeros(1, device=keys.device) if padding is None else (padding.cumsum(-1) == 0).sum(-1)
    shift = left.long()[:, None, None, None]
    return (queries - shift) // chunk == (keys - shift) // chunk


def _behind(padding: Tensor) -> Tensor:
    """[batch, 1, 1, 1]: places behind the last real token, which is the sequence's newest."""
    return (padding.flip(-1).cumsum(-1) == 0).sum(-1)[:, None, None, None]


def _is_plain(padding: Tensor | None, past: int, tokens: int, reach: int | None, causal: bool) -> bool:
    """Whether what attention does without a mask is what the mask would say."""
    if causal and ((reach is not None and past + tokens >= reach) or (past > 0 and tokens > 1)):
        return False
    return padding is None or (not padding.is_meta and bool(padding.all()))
