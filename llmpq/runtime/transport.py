"""Transports: how the stages of a pipeline, closed to a ring, hand messages to the next one."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llmpq.errors import BackendError
from llmpq.runtime.batching import Step


@dataclass(frozen=True, slots=True)
class Room:
    """Before steps: the slots that they use, and the positions of each; see Stage.reserve."""

    slots: int
    slot_len: int


@dataclass(frozen=True, slots=True)
class End:
    """The job is over; the last message of it around the ring."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A step with its hidden states, or from the last stage with what was emitted; a Room or the End without a payload."""

    content: Step | Room | End
    payload: Tensor | None = None


class Transport(Protocol):
    """One stage's place in the ring: it receives from the stage before it and sends to the one after, in order."""

    def begin(self) -> None:
        """A job begins: messages come until its End."""

    def send(self, message: Message) -> None: ...

    def receive(self) -> Message: ...

    def flush(self) -> None:
        """Return when everything that was sent has left."""


class InProcessTransport:
    """Queues between stages of one process; a message that is not there yet is an error, since nobody could still send it."""

    def __init__(self, inbox: deque[Message], outbox: deque[Message]) -> None:
        self._inbox = inbox
        self._outbox = outbox

    def begin(self) -> None:
        self._inbox.clear()  # a job before this one may have failed

    def send(self, message: Message) -> None:
        self._outbox.append(message)

    def receive(self) -> Message:
        if not self._inbox:
            raise BackendError("a stage reads a message that was not sent before")
        return self._inbox.popleft()

    def flush(self) -> None:
        pass


def in_process_ring(num_stages: int) -> tuple[InProcessTransport, ...]:
    """The places of stages 0, 1, ... that all run in this process."""
    queues: list[deque[Message]] = [deque() for _ in range(num_stages)]
    return tuple(InProcessTransport(queues[stage - 1], queues[stage]) for stage in range(num_stages))
