"""Slots: parts of a KvCache as attention layers see them in one step, for sequences that go their own ways."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmpq.runtime.kv_cache import KvCache, PassingCache


class FillingCache(PassingCache):
    """For a pass over whole prompts, padded on the left, into the slots first, first + 1, ...

    Attention sees this pass alone; each row is kept without its padding, from the first position of its slot on.
    """

    wants_every_position = False

    def __init__(self, cache: KvCache, first: int, lengths: Sequence[int]) -> None:
        self._cache, self._first, self._lengths = cache, first, tuple(lengths)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.slots(layer_idx, self._first, len(self._lengths))
        for rows, length in self._alike():
            keys[rows, :, :length] = key[rows, :, key.shape[2] - length :]
            values[rows, :, :length] = value[rows, :, value.shape[2] - length :]
        return key, value

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        keys = self._cache.index_slots(layer_idx, self._first, len(self._lengths))
        for rows, length in self._alike():
            keys[rows, :length] = index_key[rows, index_key.shape[1] - length :]
        return index_key

    def _alike(self) -> list[tuple[slice, int]]:
        """Rows that can be copied at once: all where none is padded, else one by one."""
        if len(set(self._lengths)) == 1:
            return [(slice(None), self._lengths[0])]
        return [(slice(row, row + 1), length) for row, length in enumerate(self._lengths)]


class ContinuingCache:
    """For a pass over the next position of the sequences in the slots first, first + 1, ..., each written behind its own past.

    `lengths`: their positions after the pass. Attention sees as many positions as the longest has; a mask says which are whose.
    """

    wants_every_position = False

    def __init__(self, cache: KvCache, first: int, lengths: Sequence[int]) -> None:
        self._cache, self._first, self._number, self._seen = cache, first, len(lengths), max(lengths)
        self._newest = None if min(lengths) == self._seen else tuple(length - 1 for length in lengths)
        self._places: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.slots(layer_idx, self._first, self._number)
        if self._newest is None:
            keys[:, :, self._seen - 1 : self._seen] = key
            values[:, :, self._seen - 1 : self._seen] = value
        else:
            rows, positions = self._rows_and_positions(keys.device)
            keys[rows, :, positions] = key[:, :, 0]
            values[rows, :, positions] = value[:, :, 0]
        return keys[:, :, : self._seen], values[:, :, : self._seen]

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        keys = self._cache.index_slots(layer_idx, self._first, self._number)
        if self._newest is None:
            keys[:, self._seen - 1 : self._seen] = index_key
        else:
            keys[self._rows_and_positions(keys.device)] = index_key[:, 0]
        return keys[:, : self._seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before this pass of the longest sequence (transformers' name)."""
        return self._seen - 1

    def _rows_and_positions(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._places is None:
            self._places = torch.arange(self._number, device=device), torch.tensor(self._newest, device=device)
        return self._places
