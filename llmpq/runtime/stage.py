"""Stage: one module of the pipeline with its KV caches; runs one action at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmpq.graph import Attention
from llmpq.runtime.batching import Batch
from llmpq.runtime.kv_cache import KvCache, PassingCache


class Stage:
    """`module(x, attention_mask, position_ids, past_key_values)` on one device.

    x: input ids [rows, tokens] int64 for the first stage, hidden [rows, tokens, hidden_size] for the others;
    returns hidden, or logits [rows, tokens, vocab] from the last stage.
    """

    def __init__(
        self, module: nn.Module, layers: Mapping[int, Attention], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.module = module.to(device)
        self.layers = layers
        self.dtype = dtype
        self.device = torch.device(device)
        self._caches: list[KvCache] = []

    def begin(self, batch: Batch, keeps_cache: bool) -> None:
        """Make room for a batch, after giving back that of the one before; scoring keeps no cache."""
        self._caches = []
        if keeps_cache:
            self._caches = [
                KvCache(self.layers, len(rows), batch.cache_len(index), self.dtype, self.device)
                for index, rows in enumerate(batch.decode)
            ]

    def assume_filled(self, micro_batch: int, positions: int) -> None:
        """Take that many positions of a decode micro-batch's cache as filled: for measuring, whatever they hold."""
        self._caches[micro_batch].length = positions

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values that are reserved now."""
        return sum(cache.nbytes for cache in self._caches)

    def prefill(self, batch: Batch, micro_batch: int, x: Tensor) -> Tensor:
        """All positions of the prompts of a prefill micro-batch."""
        rows, part = batch.prefill_rows(micro_batch), batch.prefill[micro_batch]
        owner = self._caches[part.owner] if self._caches else None
        cache = owner.rows(part.start, part.stop) if owner else PassingCache()
        output = self._call(x, rows.attention_mask(rows.padded_len), rows.position_ids(0, rows.padded_len), cache)
        if owner and part.stop == len(batch.decode[part.owner]):
            owner.advance(rows.padded_len)
        return output

    def decode(self, batch: Batch, micro_batch: int, x: Tensor) -> Tensor:
        """The next position of a decode micro-batch whose prompts have been prefilled."""
        rows, cache = batch.decode[micro_batch], self._caches[micro_batch]
        output = self._call(x, rows.attention_mask(cache.length + 1), rows.position_ids(cache.length, 1), cache)
        cache.advance(1)
        return output

    @torch.inference_mode()
    def _call(self, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KvCache) -> Tensor:
        mask = None if attention_mask is None else attention_mask.to(self.device)
        output: Tensor = self.module(x.to(self.device), mask, position_ids.to(self.device), cache)
        return output
