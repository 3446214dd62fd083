"""Sizes: the grid of passes that a profile measures."""

from dataclasses import dataclass

MOST_PASSES = 15  # of one point
ENOUGH_S = 0.25  # of passes of one point
FEWEST_PASSES = 3
LONGEST_S = 1.0  # of passes of one point while other processes disturb them
SLOW_S = 1.0  # a pass from which on two are enough


@dataclass(frozen=True, slots=True)
class Size:
    """`rows` sequences of `tokens` new tokens that see `context` positions; `work` orders sizes by what they take.

    In a mixed step `decoding` sequences that see `decode_context` positions are continued beside them.
    """

    rows: int
    tokens: int
    context: int
    decoding: int = 0
    decode_context: int = 0

    @property
    def work(self) -> int:
        return self.rows * self.tokens + self.decoding

    @property
    def cached(self) -> int:
        """Positions of the cache that it takes."""
        return self.rows * self.context + self.decoding * self.decode_context


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a grid reaches, and how long measuring it may take.

    rows, prompts, contexts: the values of each axis; most_tokens: of one pass; limit_s: seconds for all precisions together;
    prefill_rows: of prefill, where they are others; mixed: (tokens of a prompt, sequences decoding beside it) of mixed steps
    """

    rows: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    most_tokens: int
    limit_s: float
    prefill_rows: tuple[int, ...] = ()
    mixed: tuple[tuple[int, int], ...] = ()

    def sizes(self, max_positions: int) -> tuple[Size, ...]:
        """Prefill of every prompt and decode at every context that the model has positions for, and mixed steps at the middle
        one; the quickest first."""
        prompts = sorted({min(length, max_positions) for length in self.prompts})
        contexts = sorted({min(length, max_positions) for length in self.contexts})
        pairs = [(rows, length) for rows in self.prefill_rows or self.rows for length in prompts]
        prefill = [Size(rows, length, length) for rows, length in pairs if rows * length <= self.most_tokens]
        decode = [Size(rows, 1, length) for rows in self.rows for length in contexts]
        middle = contexts[len(contexts) // 2]
        mixed = [Size(1, length, length, beside, middle) for length, beside in self.mixed if length <= max_positions]
        return tuple(sorted([*prefill, *decode, *mixed], key=lambda size: (size.work, size.context)))


FULL = Extent((1, 2, 4, 8, 16, 32), (16, 32, 64, 128, 256, 512, 1024), (32, 128, 512, 1024), 2048, 240.0)
QUICK = Extent((1, 4, 16), (16, 64, 256), (32, 256), 1024, 45.0)
# In vLLM prompts and sequences that decode share a step, and attention is told apart from what all its tokens take together.
VLLM_FULL = Extent(
    (1, 2, 4, 8, 16, 32, 64),
    (16, 32, 64, 128, 256, 512, 1024),
    (32, 128, 512, 1024),
    2048,
    200.0,
    prefill_rows=(1, 4),
    mixed=((32, 8), (128, 8), (128, 32), (512, 16)),
)
VLLM_QUICK = Extent((1, 4, 16, 48), (16, 64, 256), (32, 256), 512, 35.0, prefill_rows=(1, 2), mixed=((64, 8), (128, 32)))


def hopeless(seconds: list[float]) -> bool:
    """Whether passes, quiet or not, have gone on for so long that the machine will not become quiet."""
    return len(seconds) >= MOST_PASSES or (len(seconds) >= FEWEST_PASSES and sum(seconds) >= LONGEST_S)


def enough(seconds: list[float]) -> bool:
    """Whether passes that took so long are repeated often enough."""
    if len(seconds) >= 2 and min(seconds) > SLOW_S:
        return True
    return len(seconds) >= MOST_PASSES or (len(seconds) >= FEWEST_PASSES and sum(seconds) >= ENOUGH_S)
