"""VllmCheck: what vLLM computes for an export beside what was promised: log-probabilities and the number of KV blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.backends.vllm_server import VllmServer

TOLERANCE = 0.04  # nats, mean: bf16 alone was seen to cost 0.01 to 0.023, a wrong row of one matrix 0.1


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
    server: VllmServer, windows: Sequence[Sequence[int]], reference: Sequence[Sequence[float]], kv_blocks: int
) -> VllmCheck:
    """Teacher-forced on each of the token sequences; reference: log-probabilities of every token but the first of each."""
    gaps = [
        abs(found - expected)
        for window, promised in zip(windows, reference, strict=True)
        for found, expected in zip(server.log_probs(window), promised, strict=True)
    ]
    mean = sum(gaps) / len(gaps)
    return VllmCheck(len(gaps), mean, max(gaps), TOLERANCE, kv_blocks, server.kv_blocks())
