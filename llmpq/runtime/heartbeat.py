"""Heartbeat: signs of life of every stage's process, in the store that they share, and who is lost."""

import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from math import inf
from typing import ClassVar

from torch._C._distributed_c10d import Store

from llmpq.errors import InputError

_LOST = "llmpq/lost"  # the first blame that was laid; later ones are its consequences
WAITS = "waits"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. join_s: until all stages are there; lost_after_s: without a sign of life of a stage; step_s: for a message from
    a stage that lives (it may be computing)."""

    join_s: float = 120.0
    lost_after_s: float = 10.0
    step_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.lost_after_s < inf:
            raise InputError(f"a stage is lost after {self.lost_after_s} s without a sign of life; give a number above 0")


PATIENCE = Patience()


def patience(lost_after_s: float | None) -> Patience:
    """The default with another time without a sign of life."""
    return PATIENCE if lost_after_s is None else replace(PATIENCE, lost_after_s=lost_after_s)


@dataclass(frozen=True, slots=True)
class Lost:
    """A rank that is lost, None for the store that all talk through; `reason` continues 'lost stage 1: '."""

    rank: int | None
    reason: str


class Signs:
    """Reads the signs of life of ranks; one is lost when its sign has not changed in `ROUNDS` rounds of reading.

    Rounds are counted, not seconds, so that a reader that was itself held up blames nobody. The first sign may take join_s.
    """

    ROUNDS: ClassVar[int] = 10

    def __init__(self, ranks: Iterable[int], patience: Patience) -> None:
        self._ranks, self._patience = tuple(ranks), patience
        self._seen: dict[int, str] = {}
        self._unchanged = dict.fromkeys(self._ranks, 0)

    def hear(self, store: Store) -> Lost | None:
        """One round. Raises RuntimeError when the store does not answer."""
        lost = None
        for rank in self._ranks:
            sign = store.get(key_of(rank)).decode() if store.check([key_of(rank)]) else ""
            self._unchanged[rank] = self._unchanged[rank] + 1 if self._seen.get(rank) == sign else 0
            self._seen[rank] = sign
            silent_s = self._unchanged[rank] * interval_s(self._patience)
            limit_s = self._patience.lost_after_s if sign else self._patience.join_s
            if silent_s > limit_s and lost is None:
                lost = Lost(rank, f"no sign of life for {silent_s:.1f} s")
        return lost

    def busy(self) -> list[int]:
        """The ranks that were computing when last heard of."""
        return [rank for rank, sign in sorted(self._seen.items()) if not sign.endswith(WAITS)]


class Heartbeat:
    """Tells the others every `interval_s` that this process lives and whether it waits for input, and reads their signs.

    `keeper`: the rank whose process keeps the store; None: a launcher.
    """

    def __init__(self, store: Store, rank: int, world_size: int, keeper: int | None, patience: Patience) -> None:
        self.waits = False
        self._store, self._rank, self._keeper, self._patience = store, rank, keeper, patience
        self._signs = Signs((other for other in range(world_size) if other != rank), patience)
        self._lost: Lost | None = None
        self._checks = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="llmpq-heartbeat", daemon=True)
        store.set_timeout(timedelta(seconds=patience.lost_after_s))
        store.set(key_of(rank), "0")

    def start(self) -> None:
        """Every rank has said its first word; from here on they must go on."""
        self._thread.start()

    def stop(self) -> None:
        """Say and hear nothing more."""
        self._stopped.set()

    def lost(self, checked_every_s: float) -> Lost | None:
        """Who is lost, as far as is known; to be asked so often while waiting."""
        self._checks += 1
        limit_s = 2 * self._patience.lost_after_s
        if self._lost is None and self._thread.is_alive() and self._checks * checked_every_s > limit_s:
            self._lost = Lost(self._keeper, f"its store has not answered for {limit_s:.0f} s")
        return self._lost

    def blame(self, lost: Lost) -> Lost:
        """Tell the others who is lost, unless somebody was before; returns whom all blame."""
        mine = f"{'' if lost.rank is None else lost.rank} {lost.reason}"
        with suppress(RuntimeError):  # who keeps the store may be the one that is lost
            return _parsed(self._store.compare_set(_LOST, "", mine).decode())
        return lost

    def busy(self) -> list[int]:
        """The other ranks that were computing when last heard of."""
        return self._signs.busy()

    def _beat(self) -> None:
        count = 0
        while not self._stopped.wait(interval_s(self._patience)):
            count += 1
            try:
                self._store.set(key_of(self._rank), f"{count} {WAITS if self.waits else ''}")
                lost = self._signs.hear(self._store)
                if lost is not None:
                    self._lost = self.blame(lost)
                elif self._store.check([_LOST]):
                    self._lost = _parsed(self._store.get(_LOST).decode())
            except RuntimeError as error:
                if not self._stopped.is_set():
                    self._lost = self._lost or Lost(self._keeper, f"its store is gone: {first_line(error)}")
                return
            self._checks = 0


def key_of(rank: int) -> str:
    """Where a rank leaves its signs of life."""
    return f"llmpq/alive/{rank}"


def interval_s(patience: Patience) -> float:
    """Seconds between two signs of life."""
    return patience.lost_after_s / Signs.ROUNDS


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _parsed(text: str) -> Lost:
    rank, _, reason = text.partition(" ")
    return Lost(int(rank) if rank else None, reason)
