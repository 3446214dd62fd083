"""Replacing a directory: all of it or nothing."""

from pathlib import Path

import pytest

from llmpq.checkpoint.replacing import replacing
from llmpq.errors import InputError


def fill(out: Path, text: str, may_replace: bool = True) -> None:
    with replacing(out, lambda _: may_replace) as directory:
        (directory / "file").write_text(text)
        assert not (out / "file").exists() or (out / "file").read_text() != text


def test_the_directory_appears_when_the_block_ends_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    fill(out, "one")
    fill(out, "two")
    assert (out / "file").read_text() == "two" and [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_taken_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "one", may_replace=False)
    with pytest.raises(InputError, match="empty: exists and is not a directory that llmpq wrote; choose another"):
        fill(tmp_path / "empty", "two", may_replace=False)
    assert (tmp_path / "empty" / "file").read_text() == "one"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out: exists"):
        fill(tmp_path / "out", "two")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_block_leaves_the_earlier_directory_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    fill(tmp_path / "out", "one")
    with pytest.raises(error), replacing(tmp_path / "out", lambda _: True) as directory:
        (directory / "file").write_text("two")
        raise error
    assert (tmp_path / "out" / "file").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_earlier_directory_comes_back_when_the_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", "one")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        fill(tmp_path / "out", "two")
    assert (tmp_path / "out" / "file").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["out"]
