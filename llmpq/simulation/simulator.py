"""Simulator: requests through the scheduler and the pipeline, and the times that come out."""

from collections import deque
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field

from llmpq.simulation.pipeline import Pipeline, Seconds, Span
from llmpq.simulation.requests import Request
from llmpq.simulation.scheduler import Chunk, Policy, Scheduler, Sequence, shape_of


@dataclass(frozen=True, slots=True)
class Served:
    """One request: seconds from its arrival to its first and its last token."""

    request: Request
    ttft_s: float
    latency_s: float

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds between its tokens; None for an answer of one token."""
        gaps = self.request.gen_len - 1
        return (self.latency_s - self.ttft_s) / gaps if gaps else None


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation gave. `busy`: share of the time that each stage computed; `spans`: the first steps, for a Gantt chart."""

    served: tuple[Served, ...]
    duration_s: float
    busy: tuple[float, ...]
    steps: int
    preemptions: int
    peak_running: int
    spans: tuple[Span, ...]

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens over the whole time, from the first arrival to the last token."""
        return sum(found.request.gen_len for found in self.served) / self.duration_s


def simulate(
    requests: Sequences[Request],
    policy: Policy,
    num_stages: int,
    stage_s: Seconds,
    link_s: Seconds,
    *,
    overlap: bool = True,
    keep_spans: int = 0,
) -> Run:
    """Serve the requests: as many steps in flight as stages, the oldest waited for when nothing else can be sent.

    Deterministic. Raises InputError for a request that can never fit in the KV cache.
    """
    pipeline = Pipeline(num_stages, stage_s, link_s, overlap, keep_spans=keep_spans)
    return _Loop(deque(sorted(requests, key=lambda request: request.arrival_s)), Scheduler(policy), pipeline).run()


@dataclass(slots=True)
class _Loop:
    """The engine's core loop: arrivals, a step in when the pipeline has room, the oldest step's tokens out."""

    arrivals: deque[Request]
    scheduler: Scheduler
    pipeline: Pipeline
    now: float = 0.0
    in_flight: deque[tuple[float, tuple[Chunk, ...]]] = field(default_factory=deque)
    first_s: dict[int, float] = field(default_factory=dict)
    served: dict[int, Served] = field(default_factory=dict)
    number: int = 0
    peak_running: int = 0

    def run(self) -> Run:
        while self.arrivals or self.scheduler.waiting or self.scheduler.running:
            self.arrive()
            if not self.send():
                self.wait()
        return Run(
            served=tuple(self.served[number] for number in range(self.number)),
            duration_s=self.now,
            busy=tuple(busy / self.now for busy in self.pipeline.busy_s),
            steps=self.pipeline.steps,
            preemptions=self.scheduler.preemptions,
            peak_running=self.peak_running,
            spans=tuple(self.pipeline.spans),
        )

    def arrive(self) -> None:
        while self.arrivals and self.arrivals[0].arrival_s <= self.now:
            self.scheduler.add(Sequence(self.arrivals.popleft(), self.number))
            self.number += 1

    def send(self) -> bool:
        """Put a step into the pipeline, if it has room and there is one."""
        if len(self.in_flight) >= self.pipeline.num_stages:
            return False
        chunks = self.scheduler.step()
        if not chunks:
            return False
        self.peak_running = max(self.peak_running, len(self.scheduler.running))
        self.in_flight.append((self.pipeline.run(shape_of(chunks), self.now), chunks))
        return True

    def wait(self) -> None:
        """Until the oldest step returns, or the next request arrives when nothing is on its way."""
        if not self.in_flight:
            self.now = max(self.now, self.arrivals[0].arrival_s)
            return
        returned, chunks = self.in_flight.popleft()
        self.now = max(self.now, returned)
        for sequence in self.scheduler.finish_step(chunks):
            since = self.now - sequence.request.arrival_s
            self.first_s.setdefault(sequence.number, since)
            if sequence.generated == sequence.request.gen_len:
                self.served[sequence.number] = Served(sequence.request, self.first_s.pop(sequence.number), since)
