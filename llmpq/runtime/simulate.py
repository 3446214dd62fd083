"""Predicted seconds of a schedule and of each action, from the times of its stages and links."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.errors import BackendError
from llmpq.runtime.schedule import Schedule
from llmpq.runtime.timeline import Action, timeline


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per action: `prefill[j]` and `decode[j]` of stage j, or of the link that leaves it (the last: back to stage 0)."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]

    def of(self, stage: int, action: Action) -> float:
        return (self.prefill if action.phase == "P" else self.decode)[stage]

    def __add__(self, other: "Times") -> "Times":
        return Times(
            tuple(a + b for a, b in zip(self.prefill, other.prefill)), tuple(a + b for a, b in zip(self.decode, other.decode))
        )


@dataclass(frozen=True, slots=True)
class Span:
    """An action of a stage: computing from `start_s` to `computed_s`, its result sent until `end_s`."""

    stage: int
    action: str
    start_s: float
    computed_s: float
    end_s: float


def simulate(schedule: Schedule, stage_times: Times, link_times: Times, overlap: bool = True) -> float:
    """Seconds until the last tokens are back at stage 0. Without `overlap` a link's time occupies the stage that sends."""
    num_stages = len(schedule.rows)
    for name, times in (("stage", stage_times), ("link", link_times)):
        if {len(times.prefill), len(times.decode)} != {num_stages}:
            raise BackendError(f"simulate: {name} times for {len(times.prefill)} stages, the schedule has {num_stages}")
    if not overlap:
        stage_times, link_times = stage_times + link_times, Times((0.0,) * num_stages, (0.0,) * num_stages)
    rows = [schedule.actions(stage) for stage in range(num_stages)]
    return timeline(rows, schedule.prefill_per_decode, stage_times.of, link_times.of).total_s


def simulated_spans(
    rows: Sequence[Sequence[Action]], prefill_per_decode: int, stage_times: Times, link_times: Times
) -> tuple[Span, ...]:
    """Every action of every stage, for seconds of it and of sending its result on, which occupies the stage that sends."""
    both = stage_times + link_times
    starts = timeline(rows, prefill_per_decode, both.of, lambda stage, action: 0.0).starts
    return tuple(
        Span(j, str(action), start, start + stage_times.of(j, action), start + both.of(j, action))
        for j, row in enumerate(rows)
        for start, action in zip(starts[j], row, strict=True)
    )
