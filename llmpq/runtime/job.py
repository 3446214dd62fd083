"""Job: what one call of a backend asks the pipeline to do, as a value that every stage receives."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmpq.errors import InputError
from llmpq.generation import SamplingParams
from llmpq.serialize import loads, to_json

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """generate: continue `sequences`; force: continue them with `forced`, for its log-probabilities; score: rate them whole.

    `generated`: what an earlier run has already made of each sequence, where there was one.
    """

    kind: Literal["generate", "force", "score"]
    sequences: tuple[Tokens, ...]
    params: SamplingParams
    forced: tuple[Tokens, ...] = ()
    generated: tuple[Tokens, ...] = ()

    def prompt(self, sequence: int) -> Tokens:
        """What is prefilled: the sequence with what was generated before."""
        return self.sequences[sequence] + (self.generated[sequence] if self.generated else ())

    def was_ended(self, sequence: int) -> bool:
        """Whether an earlier run has brought the sequence to its end."""
        generated = self.generated[sequence] if self.generated else ()
        return self.ends(sequence, generated) if generated else False

    def ends(self, sequence: int, generated: Sequence[int]) -> bool:
        """Whether the sequence has ended with these tokens: as many as it may have, or the last one says so."""
        return len(generated) >= self.new_tokens(sequence) or self.met_eos(generated)

    def met_eos(self, generated: Sequence[int]) -> bool:
        return bool(generated) and self.kind == "generate" and generated[-1] in self.params.eos_token_ids

    def positions(self, sequence: int) -> int:
        """KV positions that the sequence has at its end: the last token is never fed back."""
        return len(self.sequences[sequence]) + max(1, self.new_tokens(sequence)) - 1

    def new_tokens(self, sequence: int) -> int:
        """The most that the sequence may generate; scoring passes once, like a prefill."""
        return len(self.forced[sequence]) if self.kind == "force" else self.params.max_new_tokens

    @property
    def wants_log_probs(self) -> bool:
        return self.kind == "force" or self.params.log_probs


def generate_job(prompts: Sequence[Sequence[int]], params: SamplingParams) -> Job:
    return Job("generate", _tuples(prompts), params)


def force_job(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> Job:
    if len(prompts) != len(continuations):
        raise InputError(f"{len(continuations)} continuations were given for {len(prompts)} prompts; give one for each")
    longest = max((len(tokens) for tokens in continuations), default=0)
    return Job("force", _tuples(prompts), SamplingParams(max(1, longest)), _tuples(continuations))


def score_job(sequences: Sequence[Sequence[int]]) -> Job:
    return Job("score", _tuples(sequences), SamplingParams(1))


def encode(job: Job) -> str:
    return json.dumps(to_json(job), separators=(",", ":"))


def decode(text: str) -> Job:
    return loads(Job, text, "job")


def _tuples(sequences: Sequence[Sequence[int]]) -> tuple[Tokens, ...]:
    return tuple(tuple(int(token) for token in sequence) for sequence in sequences)
