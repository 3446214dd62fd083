"""Sampling: the next token of each row from its logits, the same whatever rows stand beside it."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from llmpq.generation import SamplingParams


def sample(logits: Tensor, params: SamplingParams, sequences: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Token ids [rows] int64 on the CPU for logits [rows, vocab]; row r is token number `steps[r]` of sequence `sequences[r]`."""
    if params.temperature == 0:
        return logits.argmax(dim=-1).cpu()
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    mass = _kept(ordered / params.temperature, params).cumsum(dim=-1).cpu()
    draws = torch.tensor([[uniform(params.seed, *place)] for place in zip(sequences, steps, strict=True)], dtype=torch.float64)
    rank = torch.searchsorted(mass, draws * mass[:, -1:])
    return order.cpu().gather(1, rank).squeeze(1)


def _kept(scaled: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities of the columns that top-k and then top-p keep, in descending order; the others are cut off or 0."""
    probabilities = scaled[:, : params.top_k or None].softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities * (before < params.top_p)


def uniform(seed: int, sequence: int, step: int) -> float:
    """A number in [0, 1) that depends on these three alone: no generator whose state a schedule could disturb."""
    digest = blake2b(f"{seed}:{sequence}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)


def token_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Natural log-probabilities of tokens [...] under logits [..., vocab], at temperature 1, float32."""
    logits = logits.float()
    chosen = logits.gather(-1, tokens.to(logits.device).unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)
