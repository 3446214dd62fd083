"""ProcessGroup: one stage's process among the others, over torch.distributed: messages around the ring, jobs from rank 0."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from llmpq.errors import BackendError, InputError, PeerError
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import Message, Transport, in_process_ring

_DTYPES = (torch.int64, torch.float64, torch.float32, torch.float16, torch.bfloat16)
_HEADER_LEN = 7  # phase, micro-batch, dimensions of the payload (0: none), dtype, three sizes
_MOST_IN_FLIGHT = 4  # messages that a stage may be ahead of the next one: bounds the memory of hidden states under way
_POLL = timedelta(seconds=1)  # how long a wait for a job goes without noticing Ctrl-C


@dataclass(frozen=True, slots=True)
class Place:
    """This process among `world_size`, from the environment that torchrun and our launcher set."""

    rank: int
    world_size: int

    @staticmethod
    def from_environment() -> "Place":
        """Raises InputError naming the variable that is missing or not a number."""
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise InputError(
                    f"environment variable {name} is not set; start the stages with torchrun or llmpq run --processes"
                )
        try:
            return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        except ValueError as error:
            raise InputError(f"environment variables RANK and WORLD_SIZE must be whole numbers: {error}") from error


class ProcessGroup:
    """The joined group: a Transport to the neighbours in the ring, and jobs (text) from rank 0 to the others.

    Headers and what returns to stage 0 cross on the CPU; hidden states on `device`, by nccl between CUDA devices. With
    `via_host` they too cross on the CPU, for processes that share one card. `name_of(rank)` names stages in errors.
    """

    def __init__(
        self,
        place: Place,
        name_of: Callable[[int], str],
        device: torch.device | str = "cpu",
        timeout_s: float = 300.0,
        via_host: bool = False,
    ) -> None:
        self.place, self._name_of, self._timeout = place, name_of, timedelta(seconds=timeout_s)
        self._device = torch.device("cpu") if via_host else torch.device(device)
        self._in_flight: deque[tuple[dist.Work, Tensor]] = deque()
        self._jobs = 0
        with self._naming("the other stages"):
            store, _, _ = next(rendezvous("env://", place.rank, place.world_size, timeout=self._timeout))
            self._store = store
            backend = "gloo" if self._device.type == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=self._timeout)

    def ring(self) -> Transport:
        """This stage's place in the ring; a stage that is alone in it hands messages to itself."""
        return self if self.place.world_size > 1 else in_process_ring(1)[0]

    def send(self, message: Message) -> None:
        """Post header and payload to the next stage; waits only when it is too far ahead of it.

        The last stage never waits: its messages are small, and stage 0 may be waiting for room itself.
        """
        peer = (self.place.rank + 1) % self.place.world_size
        with self._naming(self._name_of(peer)):
            self._post(_header(message), peer)
            if message.payload is not None:
                device = self._device if peer else torch.device("cpu")
                self._post(message.payload.to(device).contiguous(), peer)
            while peer and len(self._in_flight) > 2 * _MOST_IN_FLIGHT:
                self._in_flight.popleft()[0].wait()

    def receive(self) -> Message:
        """The next message of the stage before this one."""
        peer = (self.place.rank - 1) % self.place.world_size
        with self._naming(self._name_of(peer)):
            header = torch.empty(_HEADER_LEN, dtype=torch.int64)
            dist.recv(header, peer)
            phase, micro_batch, dimensions, dtype, *sizes = header.tolist()
            payload = None
            if dimensions:
                device = self._device if self.place.rank else torch.device("cpu")
                payload = torch.empty(sizes[:dimensions], dtype=_DTYPES[dtype], device=device)
                dist.recv(payload, peer)
        return Message(Action("D" if phase else "P", micro_batch), payload)

    def flush(self) -> None:
        with self._naming(self._name_of((self.place.rank + 1) % self.place.world_size)):
            while self._in_flight:
                self._in_flight.popleft()[0].wait()

    def publish(self, job: str) -> None:
        """Give the other ranks their next job; rank 0 only."""
        with self._naming("the other stages"):
            self._store.set(f"llmpq/job/{self._jobs}", job)
        self._jobs += 1

    def next_job(self) -> str:
        """Wait, without a limit while rank 0 lives, for what it publishes next."""
        key = f"llmpq/job/{self._jobs}"
        with self._naming(self._name_of(0)):
            while not self._waited(key):
                pass
            self._jobs += 1
            return str(self._store.get(key).decode())

    def part(self) -> None:
        """Say that nothing more is wanted of rank 0; rank 0, which keeps the store, returns when all have said so."""
        rank, others = self.place.rank, range(1, self.place.world_size)
        with self._naming("the other stages"):
            if rank:
                self._store.set(f"llmpq/left/{rank}", "")
            elif others:
                self._store.wait([f"llmpq/left/{other}" for other in others], self._timeout)

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _waited(self, key: str) -> bool:
        try:
            self._store.wait([key], _POLL)
        except dist.DistStoreError:
            return False  # the poll timed out
        return True

    def _post(self, tensor: Tensor, peer: int) -> None:
        work = dist.isend(tensor, peer)
        if work is None:
            raise BackendError("this process is not a member of its own process group")
        self._in_flight.append((work, tensor))

    @contextmanager
    def _naming(self, peer: str) -> Iterator[None]:
        """Turn what torch.distributed raises into a PeerError that names who was spoken to."""
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            waited = time.monotonic() - start
            reason = str(error).splitlines()[0]
            raise PeerError(
                f"{self._name_of(self.place.rank)} lost {peer} after {waited:.1f} s of at most "
                f"{self._timeout.total_seconds():.0f} s: {reason}; see the messages of that stage"
            ) from error


def _header(message: Message) -> Tensor:
    payload = message.payload
    shape = () if payload is None else tuple(payload.shape)
    dtype = 0 if payload is None else _DTYPES.index(payload.dtype)
    sizes = (*shape, 0, 0, 0)[:3]
    return torch.tensor([message.action.phase == "D", message.action.micro_batch, len(shape), dtype, *sizes], dtype=torch.int64)
