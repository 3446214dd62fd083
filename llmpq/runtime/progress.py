"""Progress: what each sequence of a job has generated so far, kept where the tokens return to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmpq.generation import Generation, OnToken
from llmpq.runtime.batching import Rows
from llmpq.runtime.job import Job


class Progress:
    """Takes what the last stage emits, ends sequences, and reports tokens as they come."""

    def __init__(self, job: Job, on_token: OnToken | None = None) -> None:
        self.job = job
        self.scores: dict[int, tuple[float, ...]] = {}
        self._on_token = on_token
        self._tokens: list[list[int]] = [[] for _ in job.sequences]
        self._log_probs: list[list[float]] = [[] for _ in job.sequences]

    def take(self, rows: Rows, emitted: Tensor) -> None:
        """`emitted`: [2, rows] token ids and log-probabilities, or [rows, padded_len - 1] log-probabilities when scoring."""
        if self.job.kind == "score":
            for sequence, length, values in zip(rows.sequences, rows.lengths, emitted.tolist()):
                self.scores[sequence] = tuple(values[len(values) - (length - 1) :])
            return
        for sequence, token, log_prob in zip(rows.sequences, *emitted.tolist()):
            if not self._has_ended(sequence):
                self._append(sequence, int(token), log_prob)

    def ended(self, rows: Rows) -> bool:
        return all(self._has_ended(sequence) for sequence in rows.sequences)

    def next_ids(self, rows: Rows) -> Tensor:
        """[rows, 1] int64: the newest token of each row; of an ended row the last one, whose successors are ignored."""
        return torch.tensor([[(self._tokens[s] or self.job.sequences[s])[-1]] for s in rows.sequences])

    def generations(self) -> list[Generation]:
        return [self._generation(index) for index in range(len(self._tokens))]

    def _append(self, sequence: int, token: int, log_prob: float) -> None:
        self._tokens[sequence].append(token)
        self._log_probs[sequence].append(log_prob)
        if self._on_token:
            self._on_token(sequence, token)

    def _has_ended(self, sequence: int) -> bool:
        return len(self._tokens[sequence]) >= self.job.new_tokens(sequence) or self._met_eos(sequence)

    def _met_eos(self, sequence: int) -> bool:
        tokens: Sequence[int] = self._tokens[sequence]
        return bool(tokens) and self.job.kind == "generate" and tokens[-1] in self.job.params.eos_token_ids

    def _generation(self, sequence: int) -> Generation:
        log_probs = tuple(self._log_probs[sequence]) if self.job.wants_log_probs else None
        return Generation(tuple(self._tokens[sequence]), "eos" if self._met_eos(sequence) else "length", log_probs)
