"""Transports: how the stages of a pipeline, closed to a ring, hand messages to the next one."""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llmpq.errors import BackendError
from llmpq.runtime.timeline import Action


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """The output of an action: hidden states, or from the last stage what was emitted.

    `payload` None: the decode micro-batch has ended, and this is the last that is heard of it.
    """

    action: Action
    payload: Tensor | None


class Transport(Protocol):
    """One stage's place in the ring: it receives from the stage before it and sends to the one after, in order."""

    def send(self, message: Message) -> None: ...

    def receive(self) -> Message: ...

    def flush(self) -> None:
        """Return when everything that was sent has left."""


class InProcessTransport:
    """Queues between stages of one process; a message that is not there yet is an error, since nobody could still send it."""

    def __init__(self, inbox: deque[Message], outbox: deque[Message]) -> None:
        self._inbox = inbox
        self._outbox = outbox

    def send(self, message: Message) -> None:
        self._outbox.append(message)

    def receive(self) -> Message:
        if not self._inbox:
            raise BackendError("schedule: a stage reads a message that was not sent in an earlier slot")
        return self._inbox.popleft()

    def flush(self) -> None:
        pass


def in_process_ring(num_stages: int) -> tuple[InProcessTransport, ...]:
    """The places of stages 0, 1, ... that all run in this process."""
    queues: list[deque[Message]] = [deque() for _ in range(num_stages)]
    return tuple(InProcessTransport(queues[stage - 1], queues[stage]) for stage in range(num_stages))
