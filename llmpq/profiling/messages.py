"""Messages: the processor's time that a stage's process spends on taking one message and handing one on."""

import socket
import subprocess
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from llmpq.errors import BackendError
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.channels import AHEAD, Broken, Frame, Incoming, Outgoing
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import End, Message

ROWS = 4  # sequences of a message: at one position each its bytes hardly matter
WARM_UP, ROUNDS = 10, 60
TIMEOUT_S = 60.0
PEER = "from llmpq.profiling.messages import answer; answer({port}, {hidden_size})"


def measure_message(hidden_size: int) -> float:
    """Processor seconds of a process, all its threads, for a message of a decode step that comes and one that goes.

    By the runtime's own channels, between two processes of this machine. Raises BackendError when the other does not answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    peer = subprocess.Popen([sys.executable, "-c", PEER.format(port=port, hidden_size=hidden_size)])
    try:
        _join(port, 0)
        return _seconds(hidden_size)
    except (RuntimeError, dist.DistError, Broken, TimeoutError) as error:
        raise BackendError(
            f"the process at the other end of the link did not answer: {error}; try again, or --no-link"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        peer.kill()
        peer.wait()


def answer(port: int, hidden_size: int) -> None:
    """The other end: every message back to where it came from, the End last."""
    _join(port, 1)
    incoming, outgoing = _channels(0, hidden_size)
    while not isinstance((message := _next(incoming)).content, End):
        outgoing.put(message, TIMEOUT_S)
    outgoing.put(message, TIMEOUT_S)
    outgoing.close(TIMEOUT_S)
    time.sleep(TIMEOUT_S)  # the measuring process ends this one once it has its answers


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


def _join(port: int, rank: int) -> None:
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timeout)
