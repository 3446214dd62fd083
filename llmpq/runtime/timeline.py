"""Timeline: when each action of a pipeline starts, by a small discrete-event simulation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmpq.errors import BackendError

Phase = Literal["P", "D"]


@dataclass(frozen=True, slots=True)
class Action:
    """One step of one stage: the prefill (P) of a micro-batch or the next token (D) of a decode micro-batch."""

    phase: Phase
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.phase}{self.micro_batch}"


Duration = Callable[[int, Action], float]  # (stage, action) -> seconds on the stage, or on the link that leaves it
_Event = tuple[Action, int]  # an action and how often it has come before on that stage


@dataclass(frozen=True, slots=True)
class Timeline:
    """`starts[j][k]`: when stage j starts its k-th action, seconds; `total_s`: when the last tokens are back at stage 0."""

    starts: tuple[tuple[float, ...], ...]
    total_s: float


def timeline(rows: Sequence[Sequence[Action]], prefill_per_decode: int, compute: Duration, link: Duration) -> Timeline:
    """Run the actions of every stage in the given order, each as soon as its stage is free and its input is there.

    Links are first in first out, one per stage, the last one back to stage 0, and work beside their stage.
    Raises BackendError when a stage waits for what never comes.
    """
    state = _Simulation(rows, prefill_per_decode, compute, link)
    while any(state.advance(stage) for stage in range(len(rows))):
        pass
    for stage, row in enumerate(rows):
        if len(state.starts[stage]) < len(row):
            waiting = row[len(state.starts[stage])]
            raise BackendError(f"schedule: stage {stage} waits for ever at {waiting}; what it needs is never sent")
    return Timeline(tuple(map(tuple, state.starts)), max((t for times in state.arrivals for t in times.values()), default=0.0))


class _Simulation:
    """Clocks of stages and links; `arrivals[j]` is when each event's output has left link j."""

    def __init__(self, rows: Sequence[Sequence[Action]], prefill_per_decode: int, compute: Duration, link: Duration) -> None:
        self.rows, self.compute, self.link = rows, compute, link
        self.events = [_numbered(row) for row in rows]
        self.prefills = _prefills_of(rows[0], prefill_per_decode)
        self.starts: list[list[float]] = [[] for _ in rows]
        self.arrivals: list[dict[_Event, float]] = [{} for _ in rows]
        self.stage_free = [0.0] * len(rows)
        self.link_free = [0.0] * len(rows)

    def advance(self, stage: int) -> bool:
        """Run what the stage can run now; whether there was anything."""
        before = len(self.starts[stage])
        for event in self.events[stage][before:]:
            needed = [self.arrivals[source].get(key) for source, key in self._inputs(stage, event)]
            if None in needed:
                break
            self._run(stage, event, max((time for time in needed if time is not None), default=0.0))
        return len(self.starts[stage]) > before

    def _inputs(self, stage: int, event: _Event) -> list[tuple[int, _Event]]:
        action, count = event
        if stage > 0:
            return [(stage - 1, event)]
        if action.phase == "P":
            return []
        previous = [(action, count - 1)] if count else [(prefill, 0) for prefill in self.prefills.get(action.micro_batch, ())]
        return [(len(self.rows) - 1, key) for key in previous]

    def _run(self, stage: int, event: _Event, ready: float) -> None:
        action = event[0]
        start = max(self.stage_free[stage], ready)
        self.starts[stage].append(start)
        self.stage_free[stage] = start + self.compute(stage, action)
        self.link_free[stage] = max(self.link_free[stage], self.stage_free[stage]) + self.link(stage, action)
        self.arrivals[stage][event] = self.link_free[stage]


def _numbered(row: Sequence[Action]) -> list[_Event]:
    seen: dict[Action, int] = {}
    events = []
    for action in row:
        seen[action] = seen.get(action, -1) + 1
        events.append((action, seen[action]))
    return events


def _prefills_of(row: Sequence[Action], prefill_per_decode: int) -> dict[int, list[Action]]:
    """The prefill actions of each decode micro-batch."""
    prefills: dict[int, list[Action]] = {}
    for action in row:
        if action.phase == "P":
            prefills.setdefault(action.micro_batch // prefill_per_decode, []).append(action)
    return prefills
