"""Scheduler: what the first stage sends into the pipeline next: prompts into free slots, the next token of those that run."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmpq.runtime.batching import Row, Step
from llmpq.runtime.progress import Progress
from llmpq.runtime.spec import Arrangement, PipelineSpec
from llmpq.runtime.timeline import Action

Pick = Callable[[Sequence[int]], int]  # of the micro-batches, longest waiting first, the one whose turn it is


def longest_waiting(micro_batches: Sequence[int]) -> int:
    return micro_batches[0]


class Scheduler:
    """Decode micro-batches take turns, each with slots of its own.

    In its turn a micro-batch whose tokens are all back generates the next one of every sequence that has not ended, in slots
    without gaps, and prompts that wait are prefilled into the slots that are left. Sequences without an end before their last
    token, as many as there are slots, thus go by the order that llmpq.runtime.schedule prints.
    """

    def __init__(self, arrangement: Arrangement, spec: PipelineSpec, progress: Progress, pick: Pick = longest_waiting) -> None:
        self._spec, self._progress, self._pick = spec, progress, pick
        self._waiting = deque(arrangement.sequences)
        size = spec.decode_micro_batch
        self._sizes = [min(size, arrangement.slots - first) for first in range(0, arrangement.slots, size)]
        self._rows: list[list[Row]] = [[] for _ in self._sizes]
        self._turns = list(range(len(self._sizes)))
        self._in_flight: Counter[int] = Counter()
        self._prefills = 0

    def next_turn(self) -> int | None:
        """The micro-batch whose turn it is, None when all have ended."""
        return self._pick(self._turns) if self._turns else None

    def in_flight(self, micro_batch: int) -> int:
        """Steps of a micro-batch that have not come back."""
        return self._in_flight[micro_batch]

    @property
    def all_in_flight(self) -> int:
        return self._in_flight.total()

    def came_back(self, step: Step) -> None:
        self._in_flight[self._owner(step)] -= 1

    def take_turn(self, micro_batch: int) -> list[Step]:
        """The steps of its turn; none once it has nothing left to do."""
        self._turns.remove(micro_batch)
        self._drop_ended(micro_batch)
        steps = [*self._decode(micro_batch), *self._prefill(micro_batch)]
        if steps:
            self._turns.append(micro_batch)
            self._in_flight[micro_batch] += len(steps)
        return steps

    def _owner(self, step: Step) -> int:
        return step.first_slot // self._spec.decode_micro_batch

    def _drop_ended(self, micro_batch: int) -> None:
        """Ended sequences leave; the last of the others take their places."""
        rows, index = self._rows[micro_batch], 0
        while index < len(rows):
            if not self._progress.has_ended(rows[index].sequence):
                index += 1
                continue
            last = rows.pop()
            if index < len(rows):
                rows[index] = last

    def _decode(self, micro_batch: int) -> list[Step]:
        if not self._rows[micro_batch]:
            return []
        first = micro_batch * self._spec.decode_micro_batch
        rows = tuple(replace(row, length=row.length + 1) for row in self._rows[micro_batch])
        self._rows[micro_batch] = [replace(row, slot=first + index) for index, row in enumerate(rows)]
        return [Step(Action("D", micro_batch), first, rows)]

    def _prefill(self, micro_batch: int) -> list[Step]:
        steps, rows = [], self._rows[micro_batch]
        while self._waiting and len(rows) < self._sizes[micro_batch]:
            first = micro_batch * self._spec.decode_micro_batch + len(rows)
            sequences = self._next_prompts(self._sizes[micro_batch] - len(rows))
            new = [Row(slot, sequence, self._length(sequence)) for slot, sequence in enumerate(sequences, first)]
            steps.append(Step(Action("P", self._prefills), first, tuple(new)))
            self._prefills += 1
            rows += new
        return steps

    def _next_prompts(self, most: int) -> list[int]:
        """As many prompts as go through the pipeline at once."""
        taken: list[int] = []
        while self._waiting and len(taken) < most:
            longest = max(map(self._length, (*taken, self._waiting[0])))
            if taken and len(taken) >= self._spec.prefilled_at_once(longest):
                break
            taken.append(self._waiting.popleft())
        return taken

    def _length(self, sequence: int) -> int:
        return len(self._progress.job.prompt(sequence))
