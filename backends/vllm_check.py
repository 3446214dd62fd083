"""VllmCheck: what vLLM computes for an export beside what was promised: log-probabilities and the number of KV blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.backends.vllm_server import VllmServer

# An engine may be off by so many times what computing in bf16 moves the reference itself. Two ways to compute in bf16 are as far
# from fp32 as one another: vLLM was seen at 0.8 to 1.1 times (docs/engines.md). Rounded activations make that far more.
NOISES = 2.0
LogProbs = Sequence[Sequence[float]]  # [window][token], of every token but the first of a window


@dataclass(frozen=True, slots=True)
class VllmCheck:
    """Mean and largest |difference of log-probabilities| (nats) over `tokens` from the dequantized reference; KV blocks."""

    tokens: int
    mean_difference: float
    max_difference: float
    tolerance: float
    kv_blocks_predicted: int
    kv_blocks_found: int

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not hold, with the figures; empty when all does."""
        found = []
        if not self.mean_difference <= self.tolerance:
            found.append(
                f"log-probabilities differ from the dequantized reference by {self.mean_difference:.4f} nats on average "
                f"(at most {self.max_difference:.3f}, over {self.tokens} tokens), allowed are {self.tolerance:g}"
            )
        if self.kv_blocks_found != self.kv_blocks_predicted:
            found.append(f"vLLM has {self.kv_blocks_found} KV blocks, {self.kv_blocks_predicted} were predicted")
        return tuple(found)

    def __str__(self) -> str:
        return (
            f"log-probabilities: mean |difference| {self.mean_difference:.4f}, max {self.max_difference:.3f} nats over "
            f"{self.tokens} tokens (allowed {self.tolerance:g}); KV blocks: predicted {self.kv_blocks_predicted}, "
            f"found {self.kv_blocks_found}"
        )


def check_server(
    server: VllmServer, windows: Sequence[Sequence[int]], reference: LogProbs, tolerance: float, kv_blocks: int
) -> VllmCheck:
    """Teacher-forced on each of the token sequences; reference: log-probabilities of every token but the first of each."""
    found = gaps([server.log_probs(window) for window in windows], reference)
    return VllmCheck(len(found), sum(found) / len(found), max(found), tolerance, kv_blocks, server.kv_blocks())


def tolerance_of(in_bf16: LogProbs, reference: LogProbs) -> float:
    """Nats, mean, for the reference computed in bf16 and in fp32."""
    noise = gaps(in_bf16, reference)
    return NOISES * sum(noise) / len(noise)


def gaps(found: LogProbs, expected: LogProbs) -> list[float]:
    """|difference of log-probabilities| of every token of every window."""
    rows = zip(found, expected, strict=True)
    return [abs(one - other) for row, promised in rows for one, other in zip(row, promised, strict=True)]
