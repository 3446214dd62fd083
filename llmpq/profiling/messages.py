"""Messages: the processor's time that a stage's process spends on taking one message and handing one on."""

import time

import torch

from llmpq.profiling.two_processes import TIMEOUT_S, joined
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.channels import AHEAD, Frame, Incoming, Outgoing
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import End, Message

ROWS = 4  # sequences of a message: at one position each its bytes hardly matter
WARM_UP, ROUNDS = 10, 60


def measure_message(hidden_size: int) -> float:
    """Processor seconds of a process, all its threads, for a message of a decode step that comes and one that goes.

    By the runtime's own channels, between two processes of this machine. Raises BackendError when the other does not answer.
    """
    with joined(__name__, hidden_size):
        return _seconds(hidden_size)


def answer(hidden_size: int) -> None:
    """The other end: every message back to where it came from, the End last."""
    incoming, outgoing = _channels(0, hidden_size)
    while not isinstance((message := _next(incoming)).content, End):
        outgoing.put(message, TIMEOUT_S)
    outgoing.put(message, TIMEOUT_S)
    outgoing.close(TIMEOUT_S)


def _seconds(hidden_size: int) -> float:
    incoming, outgoing = _channels(1, hidden_size)
    message = Message(_step(), torch.zeros(ROWS, 1, hidden_size, dtype=torch.bfloat16))
    start = 0.0
    for turn in range(WARM_UP + ROUNDS):
        if turn == WARM_UP:
            start = time.process_time()
        outgoing.put(message, TIMEOUT_S)
        _next(incoming)
    spent = time.process_time() - start
    outgoing.put(Message(End()), TIMEOUT_S)
    _next(incoming)
    outgoing.close(TIMEOUT_S)
    incoming.close(TIMEOUT_S)
    return spent / ROUNDS


def _next(incoming: Incoming) -> Message:
    message = incoming.next(TIMEOUT_S)
    if message is None:
        raise TimeoutError(f"no message for {TIMEOUT_S:.0f} s")
    return message


def _step() -> Step:
    return Step(Action("D", 0), 0, tuple(Row(row, row, 1) for row in range(ROWS)))


def _channels(peer: int, hidden_size: int) -> tuple[Incoming, Outgoing]:
    cpu, frame = torch.device("cpu"), Frame(ROWS, ROWS * hidden_size * torch.bfloat16.itemsize)
    return Incoming(peer, cpu, frame, AHEAD), Outgoing(peer, cpu, frame, AHEAD)
