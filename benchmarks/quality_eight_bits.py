"""Eight bits: what caches and weights of 8 bits cost, each by itself, predicted on one text and measured on another."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from llmpq.checkpoint.loss_increase import Losses, losses_of
from llmpq.evaluation import Estimate, estimate
from llmpq.frontend.texts import REPORT, read_tokens
from llmpq.precision import PRECISIONS, CachePrecision
from llmpq.quantization.fake_quantization import fake_quantized
from llmpq.quantization.rounded_cache import rounded_cache
from llmpq.quantization.scoring import Loss, Measurements

CACHES: tuple[CachePrecision, ...] = ("int8", "fp8")
WEIGHTS = ("w8a16", "w8a8", "fp8")


@dataclass(frozen=True, slots=True)
class EightBits:
    """`predicted`: the divergence on the calibration text; `got`: the increase on the report text, paired; nats per token.

    bytes_share: of what 16 bits take.
    """

    what: str
    bytes_share: float
    predicted: Estimate
    got: Estimate


def eight_bits(measured: Measurements, tokens: int) -> list[EightBits]:
    """Rounded to nearest, all layers at once, everything else in fp32."""
    graph, model = measured.graph, measured.model
    ids = read_tokens(measured.calibration.checkpoint, REPORT)[0][:tokens]
    with torch.inference_mode():
        original = losses_of(model, ids)

    def row(what: str, share: float, loss: Loss, rounded: Callable[[], AbstractContextManager[None]]) -> EightBits:
        with torch.inference_mode(), rounded():
            return EightBits(what, round(share, 4), loss.divergence, _increase(losses_of(model, ids), original))

    kind = graph.kinds[0]
    wide = kind.with_cache("16").attention.kv_bytes_per_token
    rows = [
        row(
            f"cache {kept}",
            kind.with_cache(kept).attention.kv_bytes_per_token / wide,
            measured.cached(kept),
            lambda kept=kept: rounded_cache(model, kept),
        )
        for kept in CACHES
    ]
    for name in WEIGHTS:
        options = [PRECISIONS[name]] * graph.num_layers
        share = kind.weight_bytes(PRECISIONS[name]) / kind.weight_bytes(PRECISIONS["16"])
        rows.append(
            row(
                f"weights {name}",
                share,
                measured.together(options),
                lambda options=options: fake_quantized(model, graph, dict(enumerate(options))),
            )
        )
    return rows


def _increase(mine: Losses, other: Losses) -> Estimate:
    pairs: Sequence[tuple[tuple[float, ...], tuple[float, ...]]] = list(zip(mine.windows, other.windows, strict=True))
    return estimate([torch.tensor(each) - torch.tensor(base) for each, base in pairs])
