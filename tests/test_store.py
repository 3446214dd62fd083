"""Store: values come back, and what is not a value is as if it were not there."""

from pathlib import Path

import pytest

from llmpq.evaluation import Estimate
from llmpq.store import Store

VALUE = Estimate(1.5, None)


def test_a_value_comes_back_and_is_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "folder")
    made: list[Estimate] = []

    def make() -> Estimate:
        made.append(VALUE)
        return VALUE

    assert [store.get_or("a", Estimate, make) for _ in range(3)] == [VALUE] * 3
    assert made == [VALUE] and store.get("b", Estimate) is None
    assert [path.name for path in store.folder.iterdir()] == ["a.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"mean": "x"}', b"\xff\xfe"])
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    (tmp_path / "a.json").write_bytes(damage)
    assert store.get("a", Estimate) is None
    assert store.get_or("a", Estimate, lambda: VALUE) == VALUE == store.get("a", Estimate)


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file")
    assert store.put("a", VALUE) == VALUE
