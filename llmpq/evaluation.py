"""Evaluation: cross entropy and perplexity of a text, and the distance from another model, with standard errors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import TYPE_CHECKING

from llmpq.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

LogProbs = Callable[[Sequence[int]], "Tensor"]  # token ids -> [tokens, vocabulary] fp32 log-probabilities of the next token
WINDOW = 512
BLOCK = 128  # neighbouring tokens counted as one draw: losses of neighbours are not independent


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tokens and its standard error, None for a text too short to tell."""

    mean: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """cross_entropy: nats per token. Against another model, else None: `kl` from the other model to this one and `increase`,
    cross entropy above the other's on the same tokens (nats per token); `top1`, how often both think the same token likeliest.
    Each with its standard error; that of `increase` is of the paired difference.
    """

    cross_entropy: float
    perplexity: float
    tokens: int
    kl: float | None = None
    increase: float | None = None
    top1: float | None = None
    cross_entropy_error: float | None = None
    kl_error: float | None = None
    increase_error: float | None = None
    top1_error: float | None = None


def windows(num_tokens: int, window: int = WINDOW, stride: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first scored position): every token but the first is scored once.

    A window starts `stride` tokens after the one before, half a window by default: a token sees at least window - stride
    tokens of past, or all there is. The largest stride is window - 1, since what comes first in a window cannot be scored.
    """
    step = max(1, window // 2) if stride is None else stride
    start, scored = 0, 1
    while scored < num_tokens:
        stop = min(start + window, num_tokens)
        yield start, stop, scored
        start, scored = start + step, stop


def evaluate_text(
    token_ids: Sequence[int],
    log_probs: LogProbs,
    against: LogProbs | None = None,
    window: int = WINDOW,
    advance: Callable[[int], None] = lambda done: None,
    stride: int | None = None,
) -> Evaluation:
    """Token-weighted means over sliding windows; `advance(tokens done)` after each. InputError for fewer than two tokens."""
    losses: list[Tensor] = []
    beside: dict[str, list[Tensor]] = {"kl": [], "increase": [], "top1": []}
    for start, stop, scored in _checked_windows(token_ids, window, stride):
        ids, targets = token_ids[start:stop], token_ids[scored:stop]
        predicted = log_probs(ids)[scored - 1 - start : stop - 1 - start]
        losses.append(_losses(predicted, targets))
        if against is not None:
            reference = against(ids)[scored - 1 - start : stop - 1 - start]
            beside["kl"].append((reference.exp() * (reference - predicted)).sum(-1))
            beside["increase"].append(losses[-1] - _losses(reference, targets))
            beside["top1"].append((reference.argmax(-1) == predicted.argmax(-1)).float())
        advance(stop)
    loss = estimate(losses)
    found = {name: estimate(values) for name, values in beside.items() if values}
    means = {name: value.mean for name, value in found.items()}
    errors = {f"{name}_error": value.error for name, value in found.items()}
    return Evaluation(loss.mean, exp(loss.mean), len(token_ids) - 1, **means, cross_entropy_error=loss.error, **errors)


def token_losses(
    token_ids: Sequence[int],
    log_probs: LogProbs,
    window: int = WINDOW,
    stride: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> "list[Tensor]":
    """Per window, the loss of every token that it scores, nats: what two models are compared by, one after the other."""
    losses = []
    for start, stop, scored in _checked_windows(token_ids, window, stride):
        predicted = log_probs(token_ids[start:stop])[scored - 1 - start : stop - 1 - start]
        losses.append(_losses(predicted, token_ids[scored:stop]))
        advance(stop)
    return losses


def estimate(values: "Sequence[Tensor]", block: int = BLOCK) -> Estimate:
    """Mean over all tokens of `values`, a vector per window, and its standard error from blocks of neighbouring tokens.

    The error is that of a ratio of sums over blocks: sqrt(B / (B - 1) sum_b (S_b - n_b mean)^2) / sum_b n_b.
    """
    import torch

    blocks = [piece for value in values for piece in torch.split(value.double(), block)]
    sums, counts = [float(piece.sum()) for piece in blocks], [len(piece) for piece in blocks]
    mean = sum(sums) / sum(counts)
    if len(blocks) < 2:
        return Estimate(mean, None)
    spread = sum((total - count * mean) ** 2 for total, count in zip(sums, counts))
    return Estimate(mean, sqrt(spread * len(blocks) / (len(blocks) - 1)) / sum(counts))


def _checked_windows(token_ids: Sequence[int], window: int, stride: int | None) -> Iterator[tuple[int, int, int]]:
    if len(token_ids) < 2:
        raise InputError(f"the text has {len(token_ids)} tokens; at least 2 are needed")
    if stride is not None and not 1 <= stride < window:
        raise InputError(f"stride {stride} does not fit windows of {window} tokens; expected 1 to {window - 1}")
    return windows(len(token_ids), window, stride)


def _losses(predicted: "Tensor", targets: Sequence[int]) -> "Tensor":
    """[tokens] nats: minus the log-probability of each target."""
    import torch

    return -predicted.gather(1, torch.tensor(list(targets), device=predicted.device)[:, None])[:, 0]
