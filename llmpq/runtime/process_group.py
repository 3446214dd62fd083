"""ProcessGroup: one stage's process among the others, over torch.distributed: messages around the ring, jobs from rank 0."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from llmpq.errors import InputError, PeerError
from llmpq.runtime.channels import AHEAD, Broken, Frame, Incoming, Outgoing, open_sockets, shut
from llmpq.runtime.heartbeat import PATIENCE, Heartbeat, Lost, Patience, first_line, key_of
from llmpq.runtime.transport import Message, Transport, in_process_ring

_POLL_S = 0.1  # how long a wait goes on without looking whether somebody was lost, or noticing Ctrl-C
_SHORTEST_PAUSE_S = 0.0005  # between two looks into the store
_SETTLE_S = 2.0  # for threads to end once the connections are shut
_NEVER = timedelta(days=30)  # torch.distributed gives nobody up: we do
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """This process among `world_size`, from the environment that torchrun and our launcher set."""

    rank: int
    world_size: int
    host: str = "127.0.0.1"
    port: int = 0
    launcher_keeps_store: bool = False
    attempt: int = 0  # torchrun starts all stages again on a store that remembers the attempts before

    @staticmethod
    def from_environment() -> "Place":
        """Raises InputError naming the variable that is missing or not a number."""
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise InputError(
                    f"environment variable {name} is not set; start the stages with torchrun or llmpq run --processes"
                )
        try:
            rank, world_size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        except ValueError as error:
            raise InputError(f"environment variables RANK, WORLD_SIZE and MASTER_PORT must be whole numbers: {error}") from error
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's name
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        return Place(rank, world_size, os.environ["MASTER_ADDR"], port, agent, attempt)


class ProcessGroup:
    """The joined group: a Transport to the neighbours in the ring, and jobs (text) from rank 0 to the others.

    Headers and what returns to stage 0 cross on the CPU; hidden states on `device`, by nccl between CUDA devices. With
    `via_host` they too cross on the CPU, for processes that share one card. `name_of(rank)` names stages in errors;
    `most_rows`: sequences of the largest step; `row_bytes`: of a hidden state of one of them, at one position, which on the CPU
    crosses in one message with its header. Every wait ends within `patience` with a PeerError that names who is lost.
    """

    def __init__(
        self,
        place: Place,
        name_of: Callable[[int], str],
        most_rows: int,
        device: torch.device | str = "cpu",
        patience: Patience = PATIENCE,
        via_host: bool = False,
        row_bytes: int = 0,
    ) -> None:
        self.place, self._name_of, self._patience = place, name_of, patience
        self._device = torch.device("cpu") if via_host else torch.device(device)
        self._hidden = Frame(most_rows, most_rows * row_bytes if self._device.type == "cpu" else 0)
        self._emitted = Frame(most_rows, most_rows * torch.int64.itemsize)
        self._keeper = None if place.launcher_keeps_store else 0
        self._incoming: Incoming | None = None
        self._outgoing: Outgoing | None = None
        self._jobs = 0
        self._sockets: frozenset[int] = frozenset()
        self._heartbeat: Heartbeat | None = None
        self._store = self._patiently(self._open_store, Lost(self._keeper, "its store cannot be reached"))
        own: Store = self._store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        self._heartbeat = Heartbeat(own, place.rank, place.world_size, self._keeper, patience)
        self._meet()
        self._heartbeat.start()
        self._patiently(self._join, Lost(None, "not all stages could be connected"))

    def ring(self) -> Transport:
        """This stage's place in the ring; a stage that is alone in it hands messages to itself."""
        return self if self.place.world_size > 1 else in_process_ring(1)[0]

    def begin(self) -> None:
        """Listen for the messages of a job. Stage 0 takes all at once: they are small, and the last stage must never wait."""
        before, after = ((self.place.rank + by) % self.place.world_size for by in (-1, 1))
        self._incoming = Incoming(before, *self._kind(self.place.rank))
        if self._outgoing is None:
            self._outgoing = Outgoing(after, *self._kind(after))

    def _kind(self, receiver: int) -> tuple[torch.device, Frame, int]:
        """Of the channel to that rank: where payloads arrive, their frame, and how many messages may be under way."""
        return (self._device, self._hidden, AHEAD) if receiver else (torch.device("cpu"), self._emitted, 0)

    def send(self, message: Message) -> None:
        """Hand a message over to the next stage; waits only when this one is too far ahead of it."""
        outgoing = self._outgoing
        assert outgoing is not None, "no job has begun"
        self._wait(lambda: outgoing.put(message, _POLL_S) or None, (self.place.rank + 1) % self.place.world_size)

    def receive(self) -> Message:
        """The next message of the stage before this one."""
        incoming = self._incoming
        assert incoming is not None, "no job has begun"
        return self._wait(lambda: incoming.next(_POLL_S), (self.place.rank - 1) % self.place.world_size)

    def flush(self) -> None:
        outgoing = self._outgoing
        if outgoing is not None:
            self._wait(lambda: outgoing.is_flushed(_POLL_S) or None, (self.place.rank + 1) % self.place.world_size)

    def publish(self, job: str) -> None:
        """Give the other ranks their next job; rank 0 only."""
        self._store.set(f"llmpq/job/{self._jobs}", job)
        self._jobs += 1

    def next_job(self) -> str:
        """Wait, without a limit while all live, for what rank 0 publishes next."""
        key = f"llmpq/job/{self._jobs}"
        while not self._is_set(key):
            self._raise_if_lost()
        self._jobs += 1
        return str(self._store.get(key).decode())

    def share(self, name: str, value: str) -> None:
        """Leave a text for whoever asks for it."""
        self._store.set(f"llmpq/{name}/{self.place.rank}", value)

    def shared(self, name: str) -> list[str]:
        """What every rank has shared under that name, in order; waits for it, without a limit while all live."""
        keys = [f"llmpq/{name}/{rank}" for rank in range(self.place.world_size)]
        while not all(map(self._is_set, keys)):
            self._raise_if_lost()
        return [self._store.get(key).decode() for key in keys]

    def part(self) -> None:
        """Say that nothing more is wanted of rank 0; rank 0, which may keep the store, returns when all have said so."""
        self._stop_heartbeat()
        rank, others = self.place.rank, range(1, self.place.world_size)
        if rank:
            with suppress(RuntimeError):  # rank 0 waits for nobody any more
                self._store.set(f"llmpq/left/{rank}", "")
            return
        deadline = time.monotonic() + self._patience.lost_after_s
        for other in others:
            while not self._is_set(f"llmpq/left/{other}") and time.monotonic() < deadline:
                pass  # one that went without a word is not missed any more

    def give_up(self, reason: str) -> None:
        """Tell the others that this stage fails."""
        if self._heartbeat is not None:
            self._heartbeat.blame(Lost(self.place.rank, reason))

    def _stop_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def close(self, failed: bool = False) -> None:
        """Leave the group; after a failure by breaking the connections, on which threads may wait for what will never come."""
        self._stop_heartbeat()
        if failed:
            shut(self._sockets)
        for channel in (self._incoming, self._outgoing):
            if channel is not None:
                channel.close(_SETTLE_S)
        if dist.is_initialized():
            dist.destroy_process_group()

    def _open_store(self) -> Store:
        place, limit = self.place, timedelta(seconds=self._patience.join_s)
        keeps = place.rank == 0 and not place.launcher_keeps_store
        store = TCPStore(place.host, place.port, None, keeps, limit, wait_for_workers=False, multi_tenant=keeps)
        return in_attempt(store, place.attempt)

    def _meet(self) -> None:
        """Wait until every stage is there; Raises PeerError naming the first that is not."""
        deadline = time.monotonic() + self._patience.join_s
        for rank in range(self.place.world_size):
            while not self._store.check([key_of(rank)]):
                if time.monotonic() > deadline:
                    raise self._error(Lost(rank, f"it did not come within {self._patience.join_s:.0f} s"))
                time.sleep(_POLL_S / 10)

    def _join(self) -> None:
        backend = "gloo" if self._device.type == "cpu" else "cpu:gloo,cuda:nccl"
        place, before = self.place, open_sockets()
        dist.init_process_group(backend, store=self._store, rank=place.rank, world_size=place.world_size, timeout=_NEVER)
        self._sockets = open_sockets() - before

    def _patiently(self, call: Callable[[], T], otherwise: Lost) -> T:
        """What `call` returns, on a thread that is left behind when it does not in time, or somebody is lost meanwhile."""
        results: list[T] = []
        errors: list[RuntimeError] = []

        def run() -> None:
            try:
                results.append(call())
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        deadline = time.monotonic() + self._patience.join_s
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_POLL_S)
            self._raise_if_lost()
        if results:
            return results[0]
        reason = first_line(errors[0]) if errors else f"no answer for {self._patience.join_s:.0f} s"
        raise self._error(Lost(otherwise.rank, f"{otherwise.reason}: {reason}"))

    def _wait(self, poll: Callable[[], T | None], peer: int) -> T:
        """What `poll` returns at last. Raises PeerError when somebody is lost, or the time for a step is up."""
        heartbeat, limit_s, start = self._heartbeat, self._patience.step_s, time.monotonic()
        assert heartbeat is not None
        heartbeat.waits = True
        try:
            while (found := poll()) is None:
                self._raise_if_lost()
                if time.monotonic() - start > limit_s:
                    suspect = next(iter(heartbeat.busy()), peer)
                    raise self._error(heartbeat.blame(Lost(suspect, f"no answer for {limit_s:g} s, though it lives")))
            return found
        except Broken as error:
            raise self._error(heartbeat.blame(Lost(peer, f"the connection broke: {error}"))) from error
        finally:
            heartbeat.waits = False

    def _is_set(self, key: str) -> bool:
        """Whether somebody has set the key, after looking for _POLL_S. (Waiting in the store would log every time-out.)"""
        deadline, pause_s = time.monotonic() + _POLL_S, _SHORTEST_PAUSE_S
        try:
            while not self._store.check([key]):
                if time.monotonic() > deadline:
                    return False
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_S / 10)
        except RuntimeError as error:
            raise self._error(Lost(self._keeper, f"its store is gone: {first_line(error)}")) from error
        return True

    def _raise_if_lost(self) -> None:
        lost = None if self._heartbeat is None else self._heartbeat.lost(_POLL_S)
        if lost is not None:
            raise self._error(lost)

    def _error(self, lost: Lost) -> PeerError:
        name = "the launcher or another stage" if lost.rank is None else self._name_of(lost.rank)
        error = PeerError(f"{self._name_of(self.place.rank)} lost {name}: {lost.reason}; see the messages of that stage")
        error.rank, error.reason = lost.rank, lost.reason
        return error


def in_attempt(store: Store, attempt: int) -> Store:
    """The part of a store that belongs to one start of all stages."""
    return PrefixStore(f"llmpq/attempt-{attempt}", store)
