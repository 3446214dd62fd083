"""The original model: uncompressed, in fp32, run by transformers, to measure and to compare with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.checkpoint.reader import Checkpoint


def load_original(directory: Path) -> nn.Module:
    """The transformers model of a directory, in fp32 and eval mode. Raises CheckpointError for a damaged file."""
    from transformers import AutoModelForCausalLM

    Checkpoint.open(directory)
    hide_progress_bars()
    model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def hide_progress_bars() -> None:
    """Those of transformers while it loads weights: llmpq draws its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers does not annotate it


def log_probs_of(model: nn.Module) -> Callable[[Sequence[int]], Tensor]:
    """Token ids -> [tokens, vocabulary] fp32 log-probabilities of the next token after each position."""

    @torch.inference_mode()
    def log_probs(token_ids: Sequence[int]) -> Tensor:
        logits: Tensor = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits
        return logits[0].float().log_softmax(-1)

    return log_probs


def max_positions(model: nn.Module) -> int | None:
    """The context that a transformers model was built for; None where nothing bounds it."""
    config: Any = model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)
