"""Workload: what the plan is made for."""

from dataclasses import dataclass

from llmpq.errors import InputError


@dataclass(frozen=True, slots=True)
class Batch:
    """`batch_size` sequences of `prompt_len` tokens, each continued by `gen_len` tokens, all at once."""

    batch_size: int
    prompt_len: int
    gen_len: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompt_len", "gen_len"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"workload: {name} is {value}; it must be at least 1")

    @property
    def kv_len(self) -> int:
        """Positions that a sequence's KV cache holds at the end: the last token is never fed back."""
        return self.prompt_len + self.gen_len - 1
