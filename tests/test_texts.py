"""Texts: files, JSON lines, data sets, and their tokens."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmpq.errors import InputError
from llmpq.frontend import texts
from llmpq.frontend.models import data_path, load_tokenizer, read_text, token_ids
from llmpq.frontend.texts import bundled_text_notice, load_text, read_tokens

DEMO = data_path("models", "demo")


def write_lines(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)) + "\n")
    return path


def test_a_bundled_name_and_a_plain_file_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("hello")
    assert load_text(tmp_path / "mine.txt") == ("hello", "mine")
    assert load_text("tune") == read_text("tune")


def test_documents_of_json_lines_come_in_one_seeded_order(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(50)]
    content, name = load_text(write_lines(tmp_path / "some.jsonl", documents))
    assert name == "some" and sorted(content.split("\n\n")) == sorted(documents) != content.split("\n\n")
    assert load_text(tmp_path / "some.jsonl") == (content, name)


def test_no_more_documents_are_taken_than_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "SAMPLED_CHARACTERS", 25)
    assert len(load_text(write_lines(tmp_path / "a.jsonl", ["0123456789"] * 9))[0].split("\n\n")) == 3


@pytest.mark.parametrize(
    ("line", "said"), [("{", "line 1: not JSON"), ('{"body": "x"}', "no string in the field 'text'"), ("[]", "no string")]
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line)
    with pytest.raises(InputError, match=said):
        load_text(tmp_path / "bad.jsonl")


def test_a_data_set_is_loaded_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, str]]:
        asked.append((name, config, split))
        if name == "none":
            raise FileNotFoundError("no such data set\nmore")
        return [{"text": "one"}, {"text": ""}, {"body": "two"}][: 3 if name == "odd" else 2]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_text("dataset:owner/name/plain:test") == ("one", "owner/name/plain:test")
    assert load_text("dataset:short")[0] == load_text("dataset:owner/name")[0] == "one"
    assert asked == [("owner/name", "plain", "test"), ("short", None, "train"), ("owner/name", None, "train")]
    with pytest.raises(InputError, match="cannot be loaded: no such data set"):
        load_text("dataset:none")
    with pytest.raises(InputError, match="no string in the field 'text'; found body"):
        load_text("dataset:odd")


def test_without_the_package_a_data_set_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'llmpq\[datasets\]'"):
        load_text("dataset:any")


def test_tokens_are_those_of_the_tokenizer_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path))
    expected = tuple(token_ids(load_tokenizer(DEMO), read_text("tune")[0]))
    assert read_tokens(DEMO, "tune") == (expected, "tune")
    monkeypatch.setattr(texts, "load_tokenizer", lambda directory: pytest.fail("tokenised twice"))
    assert read_tokens(DEMO, "tune") == (expected, "tune")


def test_the_bundled_text_is_right_for_the_demo_model_alone() -> None:
    assert bundled_text_notice("calibrated", "demo", "--calibration") is None
    assert "give --calibration a text" in (bundled_text_notice("calibrated", "opt-125m", "--calibration") or "")
