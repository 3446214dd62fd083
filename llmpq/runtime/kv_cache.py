"""KvCache: keys and values of a stage's layers, allocated once and divided into slots of one sequence each."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from llmpq.graph import Attention
from llmpq.precision import CachePrecision
from llmpq.quantization.cache_codecs import CODECS, CacheCodec, Held, as_cached

EVERY = slice(None)
Memory = tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]  # flat: keys and values as their codec has them, index keys


class KvCache:
    """Static cache that transformers' attention layers write through `update`.

    keys [batch_size, num_kv_heads, max_len, head_dim] and values (of value_dim) per layer, indexed by its global number, at the
    layer's precision for its cache; attention sees what that has made of them.
    As it is, all sequences go side by side: `length` positions are filled; a forward pass over n tokens writes
    [length, length + n) in every layer, and the caller then calls `advance(n)`, so that all layers and masks of one pass see
    the same past. For sequences that go their own ways see llmpq.runtime.slots.
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
        self.positions = batch_size * max_len
        self._layers, self._dtype = layers, dtype
        self._memory = {layer: _memory(attention, self.positions, dtype, device) for layer, attention in layers.items()}
        self.arrange(batch_size, max_len)

    def arrange(self, batch_size: int, max_len: int) -> None:
        """Divide the same memory anew; what it held is lost. batch_size * max_len must not exceed `positions`."""
        assert batch_size * max_len <= self.positions, "more positions than were allocated"
        self.max_len, self.length = max_len, 0
        self._entries: dict[int, tuple[Held, Held]] = {}
        self._index_keys: dict[int, Tensor] = {}
        for layer, attention in self._layers.items():
            keys, values, index_keys = self._memory[layer]
            shape, codec = (batch_size, attention.num_kv_heads, max_len), CODECS[attention.cached_at]
            self._entries[layer] = (
                _held(codec, self._dtype, keys, shape, attention.head_dim),
                _held(codec, self._dtype, values, shape, attention.value_dim),
            )
            if attention.index_dim:
                self._index_keys[layer] = _shaped(index_keys, (batch_size, max_len, attention.index_dim))

    def move(self, source: int, target: int, positions: int) -> None:
        """The sequence in slot `source`, of that many positions, goes to slot `target`."""
        for held in (each for pair in self._entries.values() for each in pair):
            held.move(source, target, positions)
        for keys in self._index_keys.values():
            keys[target, :positions] = keys[source, :positions]

    def slots(self, layer: int, first: int, number: int) -> tuple[Held, Held]:
        """Keys and values of so many slots of a layer, all their positions."""
        keys, values = self._entries[layer]
        return keys.part(first, number), values.part(first, number)

    def index_slots(self, layer: int, first: int, number: int) -> Tensor:
        """The keys of a layer's indexer in so many slots."""
        return self._index_keys[layer][first : first + number]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write key, value [batch, heads, n, head_dim] behind the past; returns all filled positions, the new ones included."""
        keys, values = self._entries[layer_idx]
        stop = self.length + key.shape[2]
        new, filled = (EVERY, EVERY, slice(self.length, stop)), (EVERY, EVERY, slice(stop))
        keys.write(new, keys.codec.encode(key))
        values.write(new, values.codec.encode(value))
        return keys.read(filled), values.read(filled)

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
        """Bytes of all slots."""
        pairs = sum(keys.nbytes + values.nbytes for keys, values in self._entries.values())
        return pairs + sum(keys.nbytes for keys in self._index_keys.values())


class PassingCache:
    """A cache of nothing, for passes over whole sequences: attention sees the keys and values of this pass alone, as they would
    be after caching them at `cached_at`."""

    wants_every_position = True

    def __init__(self, cached_at: CachePrecision = "16") -> None:
        self._cached_at = cached_at

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return as_cached(key, self._cached_at), as_cached(value, self._cached_at)

    def update_indexer(self, index_key: Tensor, layer_idx: int) -> Tensor:
        return index_key

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def _memory(attention: Attention, positions: int, dtype: torch.dtype, device: torch.device | str) -> Memory:
    """Of one layer; zeros, since what a mask hides must be finite."""
    codec, heads = CODECS[attention.cached_at], positions * attention.num_kv_heads

    def side(dim: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(heads * size, dtype=kept, device=device) for kept, size in codec.layout(dim, dtype))

    index_keys = torch.zeros(positions * attention.index_dim, dtype=dtype, device=device)
    return side(attention.head_dim), side(attention.value_dim), index_keys


def _held(codec: CacheCodec, dtype: torch.dtype, memory: tuple[Tensor, ...], shape: tuple[int, int, int], dim: int) -> Held:
    """The keys or values of slots, heads and positions in flat memory."""
    parts = zip(memory, codec.layout(dim, dtype), strict=True)
    return Held(codec, dtype, tuple(_shaped(flat, (*shape, elements)) for flat, (_, elements) in parts))


def _shaped(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    return memory[: prod(shape)].view(shape)
