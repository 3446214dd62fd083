"""Batches: sequences of different lengths as left-padded micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Sequences of one micro-batch, by their index in the job, each padded on the left to `padded_len` positions."""

    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    padded_len: int

    def __len__(self) -> int:
        return len(self.sequences)

    def slice(self, start: int, stop: int) -> "Rows":
        return Rows(self.sequences[start:stop], self.lengths[start:stop], self.padded_len)

    def input_ids(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[rows, padded_len] int64; padding is token 0, which no real position attends to."""
        ids = torch.zeros(len(self), self.padded_len, dtype=torch.int64)
        for row, (index, length) in enumerate(zip(self.sequences, self.lengths)):
            ids[row, self.padded_len - length :] = torch.tensor(sequences[index])
        return ids

    def attention_mask(self, positions: int) -> Tensor | None:
        """[rows, positions] int64 over past and new positions, 1 where real; None when no row is padded."""
        if min(self.lengths) == self.padded_len:
            return None
        return (torch.arange(positions) >= self._padding()).long()

    def position_ids(self, past: int, tokens: int) -> Tensor:
        """[rows, tokens] int64 of the positions [past, past + tokens), counted from each row's first real token."""
        return (torch.arange(past, past + tokens) - self._padding()).clamp(min=0)

    def _padding(self) -> Tensor:
        return torch.tensor([[self.padded_len - length] for length in self.lengths])


@dataclass(frozen=True, slots=True)
class Slice:
    """A prefill micro-batch: the rows [start, stop) of decode micro-batch `owner`."""

    owner: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs through the pipeline together: decode micro-batches, and the prefill micro-batches they are cut into.

    `new_tokens`: the most that any sequence of the batch generates.
    """

    decode: tuple[Rows, ...]
    prefill: tuple[Slice, ...]
    prefill_per_decode: int
    new_tokens: int

    def prefill_rows(self, micro_batch: int) -> Rows:
        part = self.prefill[micro_batch]
        return self.decode[part.owner].slice(part.start, part.stop)

    def cache_len(self, micro_batch: int) -> int:
        """Positions of the decode micro-batch's KV cache: the last token is never fed back."""
        return self.decode[micro_batch].padded_len + self.new_tokens - 1


def make_batch(
    lengths: Sequence[int], first_sequence: int, prefill_micro_batch: int, decode_micro_batch: int, new_tokens: int
) -> Batch:
    """The batch of sequences first_sequence, first_sequence + 1, ... with these lengths, in order.

    `prefill_micro_batch` divides `decode_micro_batch`; the last micro-batches may be smaller.
    """
    decode, prefill = [], []
    for owner, start in enumerate(range(0, len(lengths), decode_micro_batch)):
        own = tuple(lengths[start : start + decode_micro_batch])
        decode.append(Rows(tuple(range(first_sequence + start, first_sequence + start + len(own))), own, max(own)))
        cuts = range(0, len(own), prefill_micro_batch)
        prefill += [Slice(owner, cut, min(cut + prefill_micro_batch, len(own))) for cut in cuts]
    return Batch(tuple(decode), tuple(prefill), decode_micro_batch // prefill_micro_batch, new_tokens)
