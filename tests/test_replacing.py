"""Replacing a directory: all of it or nothing."""

from pathlib import Path

import pytest

from llmpq.checkpoint.journal import Journal
from llmpq.checkpoint.replacing import replacing, resuming
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


def left_behind(out: Path, key: str, text: str = "half") -> Path:
    """What a process leaves that was killed while it wrote."""
    partial = out.parent / f".{out.name}.partial-{key}"
    partial.mkdir()
    journal = Journal.open(partial)
    assert journal is not None
    journal.add(0, text)
    journal.close()
    (partial / "file").write_text(text)
    return partial


def test_what_a_killed_process_left_under_the_same_key_is_gone_on_with_and_the_rest_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    left_behind(out, "same")
    left_behind(out, "other")
    left_behind(tmp_path / "out2", "same")
    with resuming(out, lambda _: True, "same") as journal:
        assert journal.finished == {0: "half"} and (journal.directory / "file").read_text() == "half"
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial-same", ".out2.partial-same"]
    assert [path.name for path in out.iterdir()] == ["file"]


def test_what_a_living_process_writes_is_left_alone_and_its_key_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial = left_behind(out, "other")
    living = Journal.open(partial)
    assert living is not None
    with resuming(out, lambda _: True, "same"):
        assert partial.is_dir()
    with (
        pytest.raises(InputError, match="out: another process is writing it; wait for it"),
        resuming(out, lambda _: True, "other"),
    ):
        pass
    assert (partial / "file").is_file()
    living.close()


def test_an_output_that_was_moved_away_when_its_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "one")
    out.rename(tmp_path / ".out.replaced-123")
    with pytest.raises(ValueError), resuming(out, lambda _: True, "key"):
        raise ValueError
    assert (out / "file").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / ".out.replaced-123").mkdir()
    fill(out, "two")
    assert (out / "file").read_text() == "two" and [path.name for path in tmp_path.iterdir()] == ["out"]
