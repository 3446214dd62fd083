"""The journal of an unfinished output: what it remembers, and whether somebody writes."""

from pathlib import Path

from llmpq.checkpoint.journal import JOURNAL_FILE, Journal


def opened(directory: Path) -> Journal:
    journal = Journal.open(directory)
    assert journal is not None
    return journal


def test_finished_layers_and_their_reports_are_found_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.finished == {}
    journal.add(0, {"error": 0.5})
    journal.add(1, None)
    journal.close()
    again = opened(tmp_path)
    assert again.finished == {0: {"error": 0.5}, 1: None}
    again.close()


def test_a_line_that_was_cut_short_is_forgotten_and_written_over(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.add(0, None)
    journal.close()
    file = tmp_path / JOURNAL_FILE
    file.write_bytes(file.read_bytes() + b'{"layer": 1, "rep')
    again = opened(tmp_path)
    assert again.finished == {0: None}
    again.add(1, "second")
    again.close()
    assert opened(tmp_path).finished == {0: None, 1: "second"}


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert Journal.open(tmp_path) is None
    journal.close()
    assert Journal.open(tmp_path) is not None
