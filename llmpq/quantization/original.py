"""The original model: uncompressed, in fp32, run by transformers, to measure and to compare with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def load_original(directory: Path) -> nn.Module:
    """The transformers model of a directory, in fp32 and eval mode."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers does not annotate it
    model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def log_probs_of(model: nn.Module) -> Callable[[Sequence[int]], Tensor]:
    """Token ids -> [tokens, vocabulary] fp32 log-probabilities of the next token after each position."""

    @torch.inference_mode()
    def log_probs(token_ids: Sequence[int]) -> Tensor:
        logits: Tensor = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits
        return logits[0].float().log_softmax(-1)

    return log_probs
