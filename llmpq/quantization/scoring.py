"""Measurements: what a model loses when layers of it are rounded, each measured once and kept."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from llmpq.checkpoint.reader import Checkpoint
from llmpq.evaluation import Estimate, estimate
from llmpq.fx.split_linears import split_linears
from llmpq.graph import LayerGraph
from llmpq.layer_option import SEPARATOR, LayerOption
from llmpq.precision import CachePrecision
from llmpq.program import Calibration
from llmpq.quantization.fake_quantization import fake_quantized, quantizable_linears
from llmpq.quantization.original import load_original
from llmpq.quantization.prefix import Prefix, logits_of, next_prefix
from llmpq.quantization.rounded_cache import rounded_cache
from llmpq.quantization.score_store import score_store
from llmpq.store import Store

WINDOW = 512
WINDOWS = 8
KEPT_BYTES = 1 << 28  # of log-probabilities of the original model: every position of 4096 tokens up to a vocabulary of 16384

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Loss:
    """What rounding does to the predictions on the calibration text, nats per token.

    divergence: from the original's next-token distributions to the rounded model's: what the cross entropy rises by on text
    that is distributed as the original model says. increase: of the cross entropy on the text itself; on a few thousand tokens
    it is mostly noise, and may be negative. seconds: what measuring it took.
    """

    divergence: Estimate
    increase: Estimate
    seconds: float


@dataclass(frozen=True)
class Measurements:
    """What is measured of one model on one calibration text: when first asked for, and then kept in the store."""

    graph: LayerGraph
    calibration: Calibration
    store: Store

    @classmethod
    def of(cls, graph: LayerGraph, calibration: Calibration) -> "Measurements":
        tokens = spread_windows(calibration.token_ids, min(WINDOW, graph.max_positions))
        store = score_store(Checkpoint.open(calibration.checkpoint), tokens.flatten().tolist())
        return cls(graph, calibration, store)

    @cached_property
    def windows(self) -> Tensor:
        """[windows, tokens] token ids."""
        return spread_windows(self.calibration.token_ids, min(WINDOW, self.graph.max_positions))

    @cached_property
    def model(self) -> nn.Module:
        """The original in fp32, everything that a precision changes a linear: loaded when something is not in the store."""
        model = load_original(self.calibration.checkpoint)
        with torch.inference_mode(False):  # gradients are asked of these linears, too
            split_linears(model, [path for _, path, _ in quantizable_linears(self.graph)])
        return model

    @cached_property
    def base(self) -> tuple[Tensor, ...]:
        """Per window, the original's log-probabilities of the next token, [positions, vocabulary]; see `kept_log_probs`."""
        with torch.inference_mode():
            return kept_log_probs(logits_of(self.model, self.graph, 0, (), self.windows), len(self.windows))

    def together(self, options: Sequence[LayerOption]) -> Loss:
        """The loss with layer i at options[i], all at once."""
        names = ",".join(option.name for option in options)
        name = f"together-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
        return self.store.get_or(name, Loss, lambda: self._measure(dict(enumerate(options)), 0, ()))

    def alone(self, cells: Sequence[tuple[int, LayerOption]], advance: Advance = lambda what, done, total: None) -> list[Loss]:
        """The loss of each (layer, option) with that layer alone rounded; layers before it run once for all of them."""
        found: dict[tuple[int, LayerOption], Loss | None] = {cell: self.store.get(_cell_name(*cell), Loss) for cell in cells}
        missing = [cell for cell in cells if found[cell] is None]
        prefix: Prefix = ()
        for layer in range(max((layer for layer, _ in missing), default=-1) + 1):
            for option in [option for at, option in missing if at == layer]:
                measured = self._measure({layer: option}, layer, prefix)
                found[layer, option] = self.store.put(_cell_name(layer, option), measured)
                advance("score layers", sum(value is not None for value in found.values()), len(found))
            if any(at > layer for at, _ in missing):
                with torch.inference_mode():
                    prefix = next_prefix(self.model, self.graph, layer, prefix, self.windows)
        return [loss for cell in cells if (loss := found[cell]) is not None]

    def cached(self, precision: CachePrecision) -> Loss:
        """The loss with the keys and values of every layer as a cache at that precision holds them."""
        return self.store.get_or(f"cache-{precision}", Loss, lambda: self._lost(rounded_cache(self.model, precision), 0, ()))

    def _measure(self, options: dict[int, LayerOption], layer: int, prefix: Prefix) -> Loss:
        return self._lost(fake_quantized(self.model, self.graph, options), layer, prefix)

    def _lost(self, rounded: AbstractContextManager[None], layer: int, prefix: Prefix) -> Loss:
        base = self.base
        started = time.perf_counter()
        with torch.inference_mode(), rounded:
            logits = logits_of(self.model, self.graph, layer, prefix, self.windows)
            differences = [_difference(*each) for each in zip(base, logits, self.windows)]
        divergences, increases = zip(*differences)
        return Loss(estimate(divergences), estimate(increases), round(time.perf_counter() - started, 3))


def spread_windows(token_ids: Sequence[int], length: int) -> Tensor:
    """[windows, length] token ids, spread over the text; one shorter window when the text is shorter."""
    tokens = torch.tensor(token_ids)
    count = len(tokens) // length
    if count == 0:
        return tokens[None]
    chosen = torch.linspace(0, count - 1, min(WINDOWS, count)).round().long()
    return tokens[: count * length].view(count, length)[chosen]


def kept_log_probs(logits: Iterator[Tensor], windows: int) -> tuple[Tensor, ...]:
    """Log-probabilities of every window's logits at positions that are spread evenly, in all no more than KEPT_BYTES."""
    kept = []
    for each in logits:
        wanted = max(1, KEPT_BYTES // (4 * each.shape[-1] * windows))
        kept.append(each[:: -(-len(each) // wanted)].float().log_softmax(-1))
    return tuple(kept)


def _difference(base: Tensor, logits: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Divergence at every kept position, and increase of the loss at every one that has a next token."""
    step = -(-len(logits) // len(base))
    rounded = logits[::step].float().log_softmax(-1)
    divergence = (base.exp() * (base - rounded)).sum(-1)
    targets = window[1::step, None]
    increase = (base[: len(targets)] - rounded[: len(targets)]).gather(1, targets)[:, 0]
    return divergence, increase


def _cell_name(layer: int, option: LayerOption) -> str:
    return f"alone-{layer:03}-{option.name.replace(SEPARATOR, '+')}"
