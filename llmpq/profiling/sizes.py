"""Sizes: the grid of passes that a profile measures."""

from dataclasses import dataclass

MOST_PASSES = 15  # of one point
ENOUGH_S = 0.25  # of passes of one point
FEWEST_PASSES = 3
LONGEST_S = 1.0  # of passes of one point while other processes disturb them
SLOW_S = 1.0  # a pass from which on two are enough


@dataclass(frozen=True, slots=True)
class Size:
    """`rows` sequences of `tokens` new tokens that see `context` positions; `work` orders sizes by what they take."""

    rows: int
    tokens: int
    context: int

    @property
    def work(self) -> int:
        return self.rows * self.tokens


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a grid reaches, and how long measuring it may take.

    rows, prompts, contexts: the values of each axis; most_tokens: of one pass; limit_s: seconds for all precisions together
    """

    rows: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    most_tokens: int
    limit_s: float

    def sizes(self, max_positions: int) -> tuple[Size, ...]:
        """Prefill of every prompt and decode at every context that the model has positions for, the quickest first."""
        prompts = sorted({min(length, max_positions) for length in self.prompts})
        contexts = sorted({min(length, max_positions) for length in self.contexts})
        prefill = [Size(rows, length, length) for rows in self.rows for length in prompts if rows * length <= self.most_tokens]
        decode = [Size(rows, 1, length) for rows in self.rows for length in contexts]
        return tuple(sorted([*prefill, *decode], key=lambda size: (size.work, size.context)))


FULL = Extent((1, 2, 4, 8, 16, 32), (16, 32, 64, 128, 256, 512, 1024), (32, 128, 512, 1024), 2048, 240.0)
QUICK = Extent((1, 4, 16), (16, 64, 256), (32, 256), 1024, 45.0)


def hopeless(seconds: list[float]) -> bool:
    """Whether passes, quiet or not, have gone on for so long that the machine will not become quiet."""
    return len(seconds) >= MOST_PASSES or (len(seconds) >= FEWEST_PASSES and sum(seconds) >= LONGEST_S)


def enough(seconds: list[float]) -> bool:
    """Whether passes that took so long are repeated often enough."""
    if len(seconds) >= 2 and min(seconds) > SLOW_S:
        return True
    return len(seconds) >= MOST_PASSES or (len(seconds) >= FEWEST_PASSES and sum(seconds) >= ENOUGH_S)
