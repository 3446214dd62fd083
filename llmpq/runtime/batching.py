"""Steps: what one action of the pipeline does, sequence by sequence, and its inputs as padded rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmpq.runtime.timeline import Action


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence in a step: `slot` that holds its cache before the step, `length` positions that it has after it."""

    slot: int
    sequence: int
    length: int


@dataclass(frozen=True, slots=True)
class Step:
    """An action and its rows; the cache of row i is in slot `first_slot` + i, moved there first where it was elsewhere.

    A prefill brings whole prompts into empty slots, padded on the left to the longest; a decode step adds one position to each.
    """

    action: Action
    first_slot: int
    rows: tuple[Row, ...]

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(row.sequence for row in self.rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(row.length for row in self.rows)

    @property
    def padded_len(self) -> int:
        return max(self.lengths)

    @property
    def moves(self) -> tuple[tuple[int, int, int], ...]:
        """(from slot, to slot, positions) of the rows that a decode step finds elsewhere."""
        places = enumerate(self.rows, self.first_slot)
        return tuple((row.slot, slot, row.length - 1) for slot, row in places if row.slot != slot)

    def attention_mask(self) -> Tensor | None:
        """[rows, padded_len] int64, 1 where a position is real; None when all rows are equally long.

        Prefilled rows end together, decoded ones begin together.
        """
        if min(self.lengths) == self.padded_len:
            return None
        positions, lengths = torch.arange(self.padded_len), torch.tensor(self.lengths)[:, None]
        real = positions >= self.padded_len - lengths if self.action.phase == "P" else positions < lengths
        return real.long()

    def position_ids(self) -> Tensor:
        """[rows, tokens] int64 of the new positions, counted from each row's first real token."""
        lengths = torch.tensor(self.lengths)[:, None]
        if self.action.phase == "D":
            return lengths - 1
        return (torch.arange(self.padded_len) - (self.padded_len - lengths)).clamp(min=0)


def padded_ids(sequences: Sequence[Sequence[int]]) -> Tensor:
    """[rows, longest] int64, padded on the left with token 0, which no real position attends to."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, tokens in enumerate(sequences):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
    return ids
