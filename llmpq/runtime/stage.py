"""Stage: one module of the pipeline with its KV cache; runs one step at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from llmpq.graph import Attention
from llmpq.precision import CachePrecision
from llmpq.runtime.batching import Step
from llmpq.runtime.kv_cache import KvCache, PassingCache
from llmpq.runtime.slots import ContinuingCache, FillingCache


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
        self._cache: KvCache | None = None
        self._keeps = False

    @property
    def counts_padding(self) -> bool:
        """Whether positions are counted from the past length alone (Bart): padded rows would then be computed otherwise."""
        graph = self.module.graph if isinstance(self.module, GraphModule) else None
        used = {str(node.target): bool(node.users) for node in graph.nodes} if graph else {}
        return used.get("get_seq_length", False) and not used.get("position_ids", False)

    def reserve(self, slots: int, slot_len: int, planned: int = 0) -> None:
        """Empty slots for that many sequences of at most `slot_len` positions; 0 positions for scoring, which keeps no cache.

        The memory is that of the first call, which allocates `planned` positions, or what it needs if that is more.
        """
        self._keeps = slot_len > 0
        needed = slots * slot_len
        if self._keeps and (self._cache is None or self._cache.positions < needed):
            self._cache = None  # before there is another
            self._cache = KvCache(self.layers, 1, max(needed, planned), self.dtype, self.device)
        if self._cache is not None:
            self._cache.arrange(slots, slot_len)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values in the slots."""
        return 0 if self._cache is None else self._cache.nbytes

    def run(self, step: Step, x: Tensor) -> Tensor:
        """All positions of prompts, or the next position of sequences whose prompts have been prefilled."""
        for source, target, positions in step.moves if step.action.phase == "D" else ():
            self._slots.move(source, target, positions)
        return self._call(x, step.attention_mask(), step.position_ids(), self._past(step))

    def _past(self, step: Step) -> PassingCache | ContinuingCache:
        if step.action.phase == "D":
            return ContinuingCache(self._slots, step.first_slot, step.lengths)
        return FillingCache(self._slots, step.first_slot, step.lengths) if self._keeps else PassingCache(self._cached_at)

    @property
    def _cached_at(self) -> CachePrecision:
        return next((attention.cached_at for attention in self.layers.values()), "16")

    @property
    def _slots(self) -> KvCache:
        assert self._cache is not None, "slots are used before they are reserved"
        return self._cache

    @torch.inference_mode()
    def _call(self, x: Tensor, mask: Tensor | None, position_ids: Tensor, past: PassingCache | ContinuingCache) -> Tensor:
        mask = None if mask is None else mask.to(self.device)
        output: Tensor = self.module(x.to(self.device), mask, position_ids.to(self.device), past)
        return output
