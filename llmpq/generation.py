"""What generation is asked for and what it returns, without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llmpq.errors import InputError

OnToken = Callable[[int, int], None]  # (index of the sequence, token id), called as tokens return to the first stage


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """At most `max_new_tokens` per sequence; temperature 0 is greedy, top_k 0 and top_p 1 keep every token.

    A sequence ends with the first of `eos_token_ids` (kept in its tokens). `log_probs` asks for those of the chosen tokens.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()
    log_probs: bool = False

    def __post_init__(self) -> None:
        _expect("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _expect("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a finite number, 0 or more")
        _expect("top_k", self.top_k, self.top_k >= 0, "0 (every token) or more")
        _expect("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Generation:
    """The continuation of one prompt; `log_probs` (natural, at temperature 1) of its tokens when they were asked for.

    finish_reason: "interrupted" where a stage was lost before the sequence had ended.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["length", "eos", "interrupted"]
    log_probs: tuple[float, ...] | None = None


class TextPieces:
    """The text of one sequence, piece by piece as its tokens come: as much as forms whole characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        """What the token adds to the text, empty while a character is not whole."""
        self._ids.append(token)
        text = self._text()
        return "" if text.endswith("\ufffd") else self._new(text)

    def rest(self) -> str:
        """What was held back."""
        return self._new(self._text())

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text

    def _new(self, text: str) -> str:
        piece, self._told = text[self._told :], len(text)
        return piece


def _expect(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"sampling: {name} is {value}; it must be {expected}")
