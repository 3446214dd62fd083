"""Slots: parts of a KvCache as attention layers see them in one step, for sequences that go their own ways."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmpq.quantization.cache_codecs import Held
from llmpq.runtime.kv_cache import EVERY, KvCache, PassingCache


class FillingCache(PassingCache):
    """For a pass over whole prompts, padded on the left, into the slots first, first + 1, ...

    Attention sees this pass alone; each row is kept without its padding, from the first position of its slot on.
    """

    wants_every_position = False

    def __init__(self, cache: KvCache, first: int, lengths: Sequence[int]) -> None:
        super().__init__()
        self._cache, self._first, self._lengths = cache, first, tuple(lengths)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.slots(layer_idx, self._first, len(self._lengths))
        return self._fill(keys, key), self._fill(values, value)

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        keys = self._cache.index_slots(layer_idx, self._first, len(self._lengths))
        for rows, length in self._alike():
            keys[rows, :length] = index_key[rows, index_key.shape[1] - length :]
        return index_key

    def _fill(self, held: Held, new: Tensor) -> Tensor:
        """Keep the rows of keys or values; returns what attention sees of them."""
        encoded = held.codec.encode(new)
        for rows, length in self._alike():
            real = slice(new.shape[2] - length, None)
            held.write((rows, EVERY, slice(length)), tuple(tensor[rows, :, real] for tensor in encoded))
        return held.codec.decode(encoded, new.dtype)

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
        return self._add(keys, key), self._add(values, value)

    def _add(self, held: Held, new: Tensor) -> Tensor:
        """Keep one position more of each row's keys or values; returns what attention sees of all."""
        encoded = held.codec.encode(new)
        if self._newest is None:
            held.write((EVERY, EVERY, slice(self._seen - 1, self._seen)), encoded)
        else:
            rows, positions = self._rows_and_positions(new.device)
            held.write((rows, EVERY, positions), tuple(tensor[:, :, 0] for tensor in encoded))
        return held.read((EVERY, EVERY, slice(self._seen)))

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
