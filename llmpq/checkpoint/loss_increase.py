"""Loss increase: how far the loss of a compiled output lies above the original's, on the same tokens and both in fp32."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.reference import reference_model
from llmpq.evaluation import WINDOW, Estimate, estimate, token_losses
from llmpq.quantization.original import hide_progress_bars, load_original, log_probs_of, max_positions
from llmpq.quantization.score_store import score_store
from llmpq.store import Store


@dataclass(frozen=True, slots=True)
class Losses:
    """Per window, the loss of every token that it scores, nats."""

    windows: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Original:
    """The uncompressed model on one text; its losses are measured once and kept in the user's cache."""

    directory: Path
    token_ids: tuple[int, ...]
    store: Store

    @classmethod
    def of(cls, directory: Path, token_ids: Sequence[int]) -> "Original":
        return cls(directory, tuple(token_ids), score_store(Checkpoint.open(directory), token_ids))

    def losses(self) -> Losses:
        return self.store.get_or("losses", Losses, lambda: losses_of(load_original(self.directory), self.token_ids))

    def increase(self, out: Path) -> Estimate:
        """Nats per token by which the loss of the output directory `out` is above, with the error of the paired difference.

        Both models compute in fp32, so that the difference is what quantization did and nothing else.
        """
        hide_progress_bars()
        compiled = losses_of(reference_model(out), self.token_ids)
        pairs = zip(compiled.windows, self.losses().windows, strict=True)
        return estimate([torch.tensor(mine) - torch.tensor(other) for mine, other in pairs])


def losses_of(model: torch.nn.Module, token_ids: Sequence[int]) -> Losses:
    """Of a transformers model, in windows that do not overlap but for one token."""
    window = min(WINDOW, max_positions(model) or WINDOW)
    losses = token_losses(token_ids, log_probs_of(model), window, window - 1)
    return Losses(tuple(tuple(each.tolist()) for each in losses))
