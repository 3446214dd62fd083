"""Step: what one pass of an engine that batches continuously holds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """`sequences` decode and see `context` positions each; beside them, of `prompts` prompts, `new_tokens` tokens are computed
    that end at `prompt_len`. On average: `prompts` may be a fraction."""

    sequences: int
    context: int
    prompts: float = 0.0
    new_tokens: float = 0.0
    prompt_len: int = 0

    @property
    def tokens(self) -> float:
        """Tokens that linears work on."""
        return self.sequences + self.prompts * self.new_tokens

    @property
    def sampled(self) -> float:
        """Sequences that get a token: prompts, too, when all of theirs are computed."""
        return self.sequences + self.prompts


def step_of(rows: int, tokens: int, context: int) -> Step:
    """A pass of one phase: `rows` sequences of `tokens` new tokens that see `context` positions at the end; 1 token: decode."""
    return Step(rows, context) if tokens == 1 else Step(0, 0, rows, tokens, context)
