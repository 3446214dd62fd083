"""Evaluation: cross entropy and perplexity of a text, and the divergence from another model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from llmpq.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

LogProbs = Callable[[Sequence[int]], "Tensor"]  # token ids -> [tokens, vocabulary] fp32 log-probabilities of the next token
WINDOW = 512


@dataclass(frozen=True, slots=True)
class Evaluation:
    """cross_entropy: nats per token; kl: nats per token from the other model to this one, None without one."""

    cross_entropy: float
    perplexity: float
    tokens: int
    kl: float | None


def windows(num_tokens: int, window: int = WINDOW) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first scored position): every token but the first is scored once, with at least half a window of past."""
    stride = max(1, window // 2)
    start, scored = 0, 1
    while scored < num_tokens:
        stop = min(start + window, num_tokens)
        yield start, stop, scored
        start, scored = start + stride, stop


def evaluate_text(
    token_ids: Sequence[int],
    log_probs: LogProbs,
    against: LogProbs | None = None,
    window: int = WINDOW,
    advance: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Token-weighted means over sliding windows; `advance(tokens done)` after each. InputError for fewer than two tokens."""
    if len(token_ids) < 2:
        raise InputError(f"the text has {len(token_ids)} tokens; at least 2 are needed")
    import torch

    loss = divergence = 0.0
    for start, stop, scored in windows(len(token_ids), window):
        ids = token_ids[start:stop]
        predicted = log_probs(ids)[scored - 1 - start : stop - 1 - start]
        targets = torch.tensor(token_ids[scored:stop])
        loss -= float(predicted.gather(1, targets[:, None]).sum(dtype=torch.float64))
        if against is not None:
            reference = against(ids)[scored - 1 - start : stop - 1 - start]
            divergence += float((reference.exp() * (reference - predicted)).sum(dtype=torch.float64))
        advance(stop)
    tokens = len(token_ids) - 1
    return Evaluation(loss / tokens, exp(loss / tokens), tokens, divergence / tokens if against is not None else None)
