"""Progress: what each sequence of a job has generated so far, kept where the tokens return to."""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from llmpq.generation import Generation
from llmpq.runtime.batching import Row
from llmpq.runtime.job import Job

NewToken = tuple[int, int, float]  # index of the sequence, token id, its log-probability (0 where nobody asked)


class Progress:
    """Takes what the last stage emits and ends sequences."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.scores: dict[int, tuple[float, ...]] = {}
        self._tokens = [list(job.generated[index]) if job.generated else [] for index in range(len(job.sequences))]
        self._log_probs = [[0.0] * len(tokens) for tokens in self._tokens]

    @staticmethod
    def of(job: Job, before: Iterable[NewToken]) -> "Progress":
        """The progress of a job of which an earlier run has made these tokens."""
        made = Progress(job)
        for token in before:
            made.append(token)
        made.job = replace(job, generated=made.generated)
        return made

    def take(self, rows: tuple[Row, ...], emitted: Tensor) -> list[NewToken]:
        """`emitted`: [2, rows] token ids and log-probabilities, or [rows, padded_len - 1] log-probabilities when scoring.

        Returns the tokens that are new, none when scoring.
        """
        if self.job.kind == "score":
            for row, values in zip(rows, emitted.tolist()):
                self.scores[row.sequence] = tuple(values[len(values) - (row.length - 1) :])
            return []
        emitted_rows = zip(rows, *emitted.tolist())
        new = [(row.sequence, int(token), log_prob) for row, token, log_prob in emitted_rows if not self.has_ended(row.sequence)]
        for token in new:
            self.append(token)
        return new

    def append(self, new: NewToken) -> None:
        sequence, token, log_prob = new
        self._tokens[sequence].append(token)
        self._log_probs[sequence].append(log_prob)

    def has_ended(self, sequence: int) -> bool:
        if self.job.kind == "score":
            return sequence in self.scores
        return self.job.ends(sequence, self._tokens[sequence])

    def newest(self, sequence: int) -> int:
        """The token that the sequence is continued from."""
        return self._tokens[sequence][-1]

    @property
    def generated(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of every sequence so far."""
        return tuple(map(tuple, self._tokens))

    @property
    def ended(self) -> tuple[int, ...]:
        """The sequences that have come to their end."""
        return tuple(sequence for sequence in range(len(self._tokens)) if self.has_ended(sequence))

    def generations(self) -> list[Generation]:
        return [self._generation(index) for index in range(len(self._tokens))]

    def _generation(self, sequence: int) -> Generation:
        tokens = tuple(self._tokens[sequence])
        log_probs = tuple(self._log_probs[sequence]) if self.job.wants_log_probs else None
        if not self.has_ended(sequence):
            return Generation(tokens, "interrupted", log_probs)
        return Generation(tokens, "eos" if self.job.met_eos(tokens) else "length", log_probs)
