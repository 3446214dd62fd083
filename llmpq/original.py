"""OriginalModel: the uncompressed model, run by transformers, to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.errors import InputError
from llmpq.models import load_tokenizer, resolve


@dataclass(frozen=True, slots=True)
class OriginalModel:
    """A model directory (or hub id) in fp32, with its tokenizer."""

    module: nn.Module
    tokenizer: Any

    @staticmethod
    def load(name: str) -> "OriginalModel":
        """Raises InputError for a configuration without weights."""
        from transformers import AutoModelForCausalLM

        source = resolve(name, weights=True)
        if source.directory is None:
            raise InputError(f"model {name!r} is a configuration without weights; give a directory, a hub id or `demo`")
        module: nn.Module = AutoModelForCausalLM.from_pretrained(source.directory, dtype=torch.float32)
        return OriginalModel(module.eval(), load_tokenizer(source.directory))

    @torch.inference_mode()
    def log_probs(self, token_ids: Sequence[int]) -> Tensor:
        """[tokens, vocabulary] fp32 log-probabilities of the next token after each position."""
        logits: Tensor = self.module(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits
        return logits[0].float().log_softmax(-1)
