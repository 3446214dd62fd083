"""Signs of life: who is silent, who was blamed first, and readers that were held up themselves."""

import pytest

from llmpq.errors import InputError
from llmpq.runtime.heartbeat import Heartbeat, Lost, Patience, Signs, key_of, patience

SECOND = Patience(join_s=5.0, lost_after_s=1.0)


class Store:
    """A store in memory; raises like torch's when it is gone."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.is_gone = False

    def set(self, key: str, value: str) -> None:
        self._require()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self._require()
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        self._require()
        return all(key in self.values for key in keys)

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        self._require()
        return self.values.setdefault(key, value).encode()

    def set_timeout(self, timeout: object) -> None:
        pass

    def _require(self) -> None:
        if self.is_gone:
            raise RuntimeError("Connection reset by peer\nand more")


def test_a_rank_is_lost_when_its_sign_stays_the_same_for_so_many_rounds() -> None:
    store, signs = Store(), Signs([0, 1], SECOND)
    for count in range(12):
        store.set(key_of(0), f"{count} ")
        store.set(key_of(1), "3 waits")
        lost = signs.hear(store)  # type: ignore[arg-type]
        assert lost == (Lost(1, "no sign of life for 1.1 s") if count == 11 else None)
    assert signs.busy() == [0]


def test_the_first_sign_may_take_as_long_as_all_may_take_to_join() -> None:
    signs = Signs([0], SECOND)
    rounds = next(count for count in range(1000) if signs.hear(Store()))  # type: ignore[arg-type]
    assert rounds == pytest.approx(50, abs=2)  # 5 s of rounds of a tenth of a second


def test_all_blame_whom_the_first_blamed() -> None:
    store = Store()
    first, second = (Heartbeat(store, rank, 3, 0, SECOND) for rank in (1, 2))  # type: ignore[arg-type]
    assert first.blame(Lost(0, "the connection broke")) == Lost(0, "the connection broke")
    assert second.blame(Lost(1, "the connection broke")) == Lost(0, "the connection broke")
    store.is_gone = True
    assert second.blame(Lost(1, "the connection broke")) == Lost(1, "the connection broke")


def test_whoever_keeps_the_store_is_lost_with_it() -> None:
    store = Store()
    heartbeat = Heartbeat(store, 1, 2, 0, Patience(lost_after_s=0.05))  # type: ignore[arg-type]
    store.set(key_of(0), "0")
    store.is_gone = True
    heartbeat.start()
    for _ in range(1000):
        if (lost := heartbeat.lost(0.0)) is not None:
            break
        heartbeat._stopped.wait(0.005)
    assert lost == Lost(0, "its store is gone: Connection reset by peer")


def test_the_time_without_a_sign_of_life_must_be_above_0() -> None:
    assert patience(None) == Patience() and patience(3.0).lost_after_s == 3.0
    with pytest.raises(InputError, match="lost after -1 s without a sign of life; give a number above 0"):
        patience(-1)
