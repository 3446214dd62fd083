"""Pipeline clocks: when each stage runs each step, stages and links first in, first out."""

from collections.abc import Callable
from dataclasses import dataclass, field

from llmpq.simulation.scheduler import StepShape

Seconds = Callable[[int, StepShape], float]  # (stage, step) -> seconds on the stage, or on the link that leaves it


@dataclass(frozen=True, slots=True)
class Span:
    """A step on a stage: seconds, and what it held."""

    stage: int
    step: int
    start_s: float
    end_s: float
    prefill_tokens: int
    decode_sequences: int


@dataclass(slots=True)
class Pipeline:
    """Without `overlap` a link's time occupies the stage that sends; the last link goes back to the scheduler."""

    num_stages: int
    stage_s: Seconds
    link_s: Seconds
    overlap: bool = True
    steps: int = 0
    spans: list[Span] = field(default_factory=list)
    keep_spans: int = 0
    stage_free: list[float] = field(default_factory=list)
    link_free: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stage_free, self.link_free, self.busy_s = ([0.0] * self.num_stages for _ in range(3))

    def run(self, step: StepShape, now: float) -> float:
        """Send a step in at `now`; when its tokens are back."""
        ready = now
        for stage in range(self.num_stages):
            start = max(ready, self.stage_free[stage])
            computed = start + self.stage_s(stage, step)
            link = self.link_s(stage, step)
            ready = (max(computed, self.link_free[stage]) if self.overlap else computed) + link
            self.link_free[stage] = ready
            self.stage_free[stage] = computed if self.overlap else ready
            self.busy_s[stage] += self.stage_free[stage] - start
            if len(self.spans) < self.keep_spans:
                self.spans.append(Span(stage, self.steps, start, computed, step.prefill_tokens, step.decode_sequences))
        self.steps += 1
        return ready
