"""Engine: runs jobs on the stages of a pipeline that live in this process."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from llmpq.runtime.batching import Step
from llmpq.runtime.job import Job
from llmpq.runtime.progress import NewToken, Progress
from llmpq.runtime.scheduler import Pick, Scheduler, longest_waiting
from llmpq.runtime.spec import PipelineSpec, arrangements
from llmpq.runtime.stage import Stage
from llmpq.runtime.transport import End, Message, Room, Transport
from llmpq.runtime.worker import OnAction, Worker


class Engine:
    """`stages`: those of this process by index: all of them, or one beside other processes that run the same jobs.

    `transports`: the place of each stage in `stages`, in the same order. `pick` decides which micro-batch is next, `on_action`
    is called with every action of these stages and the times on `clock` between which it was computed.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        stages: Mapping[int, Stage],
        transports: Sequence[Transport],
        pick: Pick = longest_waiting,
        on_action: OnAction | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.spec, self.stages, self.transports = spec, stages, transports
        self._pick, self._on_action, self._clock = pick, on_action, clock

    def run(self, progress: Progress) -> Iterator[NewToken]:
        """Run the job of `progress` to its end, where stage 0 lives; yields tokens as they return to it.

        An iterator that is closed before ends the job at once, for every stage.
        """
        first, *others = self._workers(progress.job)
        spec = replace(self.spec, prefill_micro_batch=1, decode_micro_batch=1) if first.stage.counts_padding else self.spec
        try:
            for arrangement in arrangements(progress.job, self.spec):
                first.handle(Message(Room(arrangement.slots, arrangement.slot_len)))
                self._follow(others)
                scheduler = Scheduler(arrangement, spec, progress, self._pick)
                yield from self._turns(scheduler, progress, first, others)
        except GeneratorExit:
            self._end(first, others)
            raise
        self._end(first, others)

    def follow(self, job: Job) -> None:
        """Run the part of a stage that is not the first."""
        (worker,) = self._workers(job)
        while worker.follow():
            pass
        worker.transport.flush()

    def _workers(self, job: Job) -> list[Worker]:
        places = zip(self.stages.items(), self.transports, strict=True)
        rest = (job, self.spec.cache_positions, self._on_action, self._clock)
        workers = [Worker(index, self.spec.num_stages, stage, transport, *rest) for (index, stage), transport in places]
        for worker in workers:
            worker.transport.begin()
        return workers

    def _turns(self, scheduler: Scheduler, progress: Progress, first: Worker, others: Sequence[Worker]) -> Iterator[NewToken]:
        while (micro_batch := scheduler.next_turn()) is not None:
            while scheduler.in_flight(micro_batch):
                yield from _collect(scheduler, progress, first)
            for step in scheduler.take_turn(micro_batch):
                first.feed(step, progress)
                self._follow(others)

    def _follow(self, others: Sequence[Worker]) -> None:
        """Where all stages live in this process, each does at once what the one before it has sent."""
        for worker in others:
            worker.follow()

    def _end(self, first: Worker, others: Sequence[Worker]) -> None:
        """Send the End around, and drop what is still on its way before it."""
        first.handle(Message(End()))
        self._follow(others)
        while not isinstance(first.transport.receive().content, End):
            pass
        first.transport.flush()


def _collect(scheduler: Scheduler, progress: Progress, first: Worker) -> list[NewToken]:
    """Take the next message that returns to the first stage."""
    message = first.transport.receive()
    if not isinstance(message.content, Step) or message.payload is None:
        return []
    scheduler.came_back(message.content)
    return progress.take(message.content.rows, message.payload)
