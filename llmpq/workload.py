"""Workload: what the plan is made for."""

from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from typing import Any

from llmpq.errors import InputError

KV_BLOCK = 16  # tokens, vLLM's default on GPUs
SPREAD = 2.0  # standard deviations of the cached tokens that are kept free, so that sequences are rarely preempted


@dataclass(frozen=True, slots=True)
class Batch:
    """`batch_size` sequences of `prompt_len` tokens, each continued by `gen_len` tokens, all at once."""

    batch_size: int
    prompt_len: int
    gen_len: int

    def __post_init__(self) -> None:
        _check_counts(self, ("batch_size", "prompt_len", "gen_len"))

    @property
    def kv_len(self) -> int:
        """Positions that a sequence's KV cache holds at the end: the last token is never fed back."""
        return self.prompt_len + self.gen_len - 1


@dataclass(frozen=True, slots=True)
class Serving:
    """Requests that arrive at `rate_per_s`, of `prompt_len` and `gen_len` tokens on average, batched continuously.

    ttft_s: time to the first token, tpot_s: time per token after it, both limits of the mean at full load; None: no limit.
    prefix_hits: share of the prompts' tokens that a prefix cache spares.
    longest: tokens of the longest prompt with its answer; cached_tokens: mean tokens in the cache of a running sequence,
    E[n (s + n / 2)] / E[n] over requests of s and n tokens, with their standard deviation. None: all are of the mean lengths.
    """

    rate_per_s: float
    prompt_len: int
    gen_len: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    prefix_hits: float = 0.0
    longest: int | None = None
    cached_tokens: float | None = None
    cached_tokens_std: float | None = None

    def __post_init__(self) -> None:
        _check_counts(self, ("prompt_len", "gen_len"))
        for name in ("rate_per_s", "ttft_s", "tpot_s", "cached_tokens", "cached_tokens_std"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise InputError(f"workload: {name} is {value}; it must be a finite number above 0")
        if not 0 <= self.prefix_hits < 1:
            raise InputError(f"workload: prefix_hits is {self.prefix_hits}; it is a share, at least 0 and below 1")
        if self.longest is not None and self.longest < 2:
            raise InputError(f"workload: longest is {self.longest}; a prompt with its answer has at least 2 tokens")

    @property
    def kv_len(self) -> int:
        """Positions of the longest sequence."""
        return (self.prompt_len + self.gen_len if self.longest is None else self.longest) - 1

    @property
    def new_prompt_tokens(self) -> float:
        """Tokens of a prompt that are computed, on average."""
        return self.prompt_len * (1.0 - self.prefix_hits)

    @property
    def resident_tokens(self) -> float:
        """Tokens in the cache of a running sequence, on average over time."""
        return self.prompt_len + self.gen_len / 2 if self.cached_tokens is None else self.cached_tokens

    @property
    def has_limits(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None

    def prefill_tokens(self, sequences: int) -> float:
        """Prompt tokens of a step beside that many decoding sequences: every sequence that ends is followed by a prompt."""
        return sequences * self.new_prompt_tokens / self.gen_len

    def kv_tokens(self, running: int) -> int:
        """Tokens of cache for `running` sequences at independent points of their lives, with room for the spread of the sum."""
        uniform = self.gen_len / sqrt(12.0)  # of a position in an answer
        spread = SPREAD * sqrt(running) * (uniform if self.cached_tokens_std is None else self.cached_tokens_std)
        return max(ceil(running * self.resident_tokens + spread), self.kv_len + 1)

    def kv_blocks(self, running: int) -> int:
        """Blocks for those tokens: the last block of a sequence is half full, and the engine keeps one."""
        return ceil(self.kv_tokens(running) / KV_BLOCK + running / 2) + 1


Workload = Batch | Serving


def resident_sizes(batch_size: int) -> tuple[int, ...]:
    """Sequences of a batch that may be in the cache at once while the others wait: all, a half, a third, a quarter, an eighth,
    and so on down to one."""
    rounds = [1, 2, 3, *(1 << power for power in range(2, batch_size.bit_length()))]
    return tuple(sorted({-(-batch_size // count) for count in rounds} | {1}, reverse=True))


def with_length(workload: Workload, name: str, value: int) -> Workload:
    """The workload with another batch_size, prompt_len or gen_len."""
    changed: dict[str, Any] = {name: value}
    return replace(workload, **changed)


def _check_counts(workload: Workload, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(workload, name)
        if value < 1:
            raise InputError(f"workload: {name} is {value}; it must be at least 1")
