"""Channels: messages to and from a neighbour over torch.distributed, on threads of their own so that they pass beside compute."""

import os
import queue
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from llmpq.runtime.batching import Row, Step
from llmpq.runtime.timeline import Action, Phase
from llmpq.runtime.transport import End, Message, Room

_DTYPES = (torch.int64, torch.float64, torch.float32, torch.float16, torch.bfloat16)
_HEADER = 8  # int64: kind, two numbers of the step or room, number of rows, dtype (-1: no payload), three sizes; then the rows
_ROW = 3  # slot, sequence, length
_STEPS: tuple[Phase, Phase] = ("P", "D")
_ROOM, _END = 2, 3
AHEAD = 4  # messages that a stage may be ahead of the next one: bounds the memory of hidden states under way


class Broken(Exception):
    """The connection failed; the text says how."""

    @staticmethod
    def by(error: RuntimeError) -> "Broken":
        return Broken(str(error).splitlines()[0].split(". This is")[0])


@dataclass(frozen=True, slots=True)
class Frame:
    """What both ends know of a channel: headers of at most `rows` sequences, and behind each `room` bytes for a payload.

    A payload that fits travels with its header, as those of decode steps are meant to; a larger one follows on its own.
    """

    rows: int
    room: int = 0

    @property
    def header_bytes(self) -> int:
        return (_HEADER + _ROW * self.rows) * torch.int64.itemsize

    def empty(self) -> Tensor:
        return torch.empty(self.header_bytes + self.room, dtype=torch.uint8)

    def header(self, frame: Tensor) -> Tensor:
        return frame[: self.header_bytes].view(torch.int64)

    def payload(self, frame: Tensor, nbytes: int) -> Tensor:
        return frame[self.header_bytes : self.header_bytes + nbytes]


class Incoming:
    """Messages of one job from `peer`, received one after the other until its End, at most `most` of them not yet taken."""

    def __init__(self, peer: int, device: torch.device, frame: Frame, most: int) -> None:
        self._peer, self._device, self._frame = peer, device, frame
        self._queue: queue.Queue[Message | Broken] = queue.Queue(most)
        self._thread = threading.Thread(target=self._receive, name="llmpq-incoming", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Message | None:
        """The next message, None when there was none in that time. Raises Broken."""
        try:
            found = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, Broken):
            raise found
        return found

    def close(self, timeout_s: float) -> None:
        """Wait for the thread, which ends with the job or the connection."""
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()  # so that it does not wait for room
        self._thread.join(timeout_s)

    def _receive(self) -> None:
        frame = self._frame.empty()
        try:
            while True:
                dist.recv(frame, self._peer)
                numbers = self._frame.header(frame).tolist()
                self._queue.put(Message(_content(numbers), self._payload(numbers, frame)))
                if numbers[0] == _END:
                    return
        except RuntimeError as error:
            self._queue.put(Broken.by(error))

    def _payload(self, numbers: list[int], frame: Tensor) -> Tensor | None:
        if numbers[4] < 0:
            return None
        dtype, sizes = _DTYPES[numbers[4]], [size for size in numbers[5:8] if size >= 0]
        nbytes = prod(sizes) * dtype.itemsize
        if nbytes <= self._frame.room:
            return self._frame.payload(frame, nbytes).clone().view(dtype).view(sizes)
        payload = torch.empty(sizes, dtype=dtype, device=self._device)
        dist.recv(payload, self._peer)
        return payload


class Outgoing:
    """Messages to `peer`, sent one after the other, at most `most` of them not yet on their way."""

    def __init__(self, peer: int, device: torch.device, frame: Frame, most: int) -> None:
        self._peer, self._device, self._frame = peer, device, frame
        self._queue: queue.Queue[Message | None] = queue.Queue(most)
        self._broken: Broken | None = None
        self._thread = threading.Thread(target=self._send, name="llmpq-outgoing", daemon=True)
        self._thread.start()

    def put(self, message: Message, timeout_s: float) -> bool:
        """Whether there was room for it in that time. Raises Broken."""
        if self._broken:
            raise self._broken
        try:
            self._queue.put(message, timeout=timeout_s)
        except queue.Full:
            return False
        return True

    def is_flushed(self, timeout_s: float) -> bool:
        """Whether all that was put has left, after waiting for it so long. Raises Broken."""
        with self._queue.all_tasks_done:
            flushed = self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks or self._broken, timeout_s)
        if self._broken:
            raise self._broken
        return bool(flushed)

    def close(self, timeout_s: float) -> None:
        """End the thread; what was put before still leaves."""
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout_s)

    def _send(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                payload = None if message.payload is None else message.payload.to(self._device).contiguous()
                dist.send(_framed(message, payload, self._frame), self._peer)
                if payload is not None and payload.nbytes > self._frame.room:
                    dist.send(payload, self._peer)
            except RuntimeError as error:
                self._broken = Broken.by(error)
                return
            self._queue.task_done()


def _framed(message: Message, payload: Tensor | None, frame: Frame) -> Tensor:
    """The message with its payload if that fits. What is left of the frame is whatever was there."""
    content = message.content
    rows: list[int] = []
    if isinstance(content, Step):
        rows = [number for row in content.rows for number in (row.slot, row.sequence, row.length)]
        start = [_STEPS.index(content.action.phase), content.action.micro_batch, content.first_slot, len(content.rows)]
    elif isinstance(content, Room):
        start = [_ROOM, content.slots, content.slot_len, 0]
    else:
        start = [_END, 0, 0, 0]
    sizes = [-1] * 4 if payload is None else [_DTYPES.index(payload.dtype), *payload.shape]
    start += sizes + [-1] * (_HEADER - len(start) - len(sizes))
    found = frame.empty()
    frame.header(found)[: _HEADER + len(rows)] = torch.tensor(start + rows)
    if payload is not None and payload.nbytes <= frame.room:
        frame.payload(found, payload.nbytes).copy_(payload.view(-1).view(torch.uint8))
    return found


def _content(numbers: list[int]) -> Step | Room | End:
    kind, first, second, rows = numbers[:4]
    if kind == _ROOM:
        return Room(first, second)
    if kind == _END:
        return End()
    starts = range(_HEADER, _HEADER + _ROW * rows, _ROW)
    return Step(Action(_STEPS[kind], first), second, tuple(Row(*numbers[start : start + _ROW]) for start in starts))


def open_sockets() -> frozenset[int]:
    """File descriptors of the sockets of this process (Linux; elsewhere none are known)."""
    folder = Path("/proc/self/fd")
    found = set()
    for link in folder.iterdir() if folder.exists() else ():
        with suppress(OSError):  # closed meanwhile
            if str(link.readlink()).startswith("socket:"):
                found.add(int(link.name))
    return frozenset(found)


def shut(sockets: frozenset[int]) -> None:
    """End the connections, so that those who wait on them, here and there, learn it."""
    for number in sockets:
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
            if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # gloo aborts when it can listen no more
                found.shutdown(socket.SHUT_RDWR)
