"""KvCache: keys and values of a stage's layers for a fixed set of sequences, allocated once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmpq.graph import Attention


class KvCache:
    """Static cache that transformers' attention layers write through `update`.

    keys [batch_size, num_kv_heads, max_len, head_dim] and values (of value_dim) per layer, indexed by its global number.
    `length` positions are filled; a forward pass over n tokens writes [length, length + n) in every layer, and the
    caller then calls `advance(n)`, so that all layers and masks of one pass see the same past.
    """

    wants_every_position = False  # generation reads the logits of the last position only

    def __init__(
        self,
        layers: Mapping[int, Attention],
        batch_size: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.length = 0
        self.max_len = max_len
        self._entries: dict[int, tuple[Tensor, Tensor]] = {}
        self._index_keys: dict[int, Tensor] = {}
        for layer, attention in layers.items():
            shape = (batch_size, attention.num_kv_heads, max_len)
            self._entries[layer] = (
                torch.zeros(*shape, attention.head_dim, dtype=dtype, device=device),
                torch.zeros(*shape, attention.value_dim, dtype=dtype, device=device),
            )
            if attention.index_dim:
                self._index_keys[layer] = torch.zeros(batch_size, max_len, attention.index_dim, dtype=dtype, device=device)

    def rows(self, start: int, stop: int) -> "KvCache":
        """The sequences [start, stop) as a cache of their own that shares this one's memory and starts at its length."""
        view = KvCache({}, 0, self.max_len, torch.float32)
        view.length = self.length
        view._entries = {layer: (keys[start:stop], values[start:stop]) for layer, (keys, values) in self._entries.items()}
        view._index_keys = {layer: keys[start:stop] for layer, keys in self._index_keys.items()}
        return view

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write key, value [batch, heads, n, head_dim] behind the past; returns all filled positions, the new ones included."""
        keys, values = self._entries[layer_idx]
        stop = self.length + key.shape[2]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        return keys[:, :, :stop], values[:, :, :stop]

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        """Write index_key [batch, n, index_dim] behind the past; returns all filled positions (transformers' name)."""
        keys = self._index_keys[layer_idx]
        stop = self.length + index_key.shape[1]
        keys[:, self.length : stop] = index_key
        return keys[:, :stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions filled before this pass (transformers' name)."""
        return self.length

    def advance(self, tokens: int) -> None:
        self.length += tokens

    @property
    def nbytes(self) -> int:
        pairs = sum(keys.nbytes + values.nbytes for keys, values in self._entries.values())
        return pairs + sum(keys.nbytes for keys in self._index_keys.values())


class PassingCache(KvCache):
    """A cache of nothing, for passes over whole sequences: attention sees the keys and values of this pass alone."""

    wants_every_position = True

    def __init__(self) -> None:
        super().__init__({}, 0, 0, torch.float32)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key, value

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        return index_key
