"""Texts: what models are calibrated and evaluated on: files, JSON lines, data sets, the bundled ones; and their tokens."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llmpq.cache import cache_folder
from llmpq.errors import InputError
from llmpq.frontend.models import DEMO, load_tokenizer, read_text, read_utf8, token_ids
from llmpq.store import Store

DATASET = "dataset:"
FIELD = "text"
SAMPLED_CHARACTERS = 1 << 20  # of documents: some 250,000 tokens, far more than anything here looks at
SEED = 0
CACHED_CHARACTERS = 1 << 14  # a shorter text is tokenised faster than looked up
CALIBRATE, TUNE, REPORT = "calibrate", "tune", "report"  # the bundled texts


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of a whole text."""

    ids: tuple[int, ...]


def load_text(name: str | PathLike[str]) -> tuple[str, str]:
    """(content, name) of a text: a file; a .jsonl file, whose documents are in the field `text`; `dataset:NAME[/CONFIG][:SPLIT]`;
    or a bundled one: calibrate, tune, report.

    Documents come in an order that depends on nothing but a fixed seed, until there are SAMPLED_CHARACTERS.
    """
    path = Path(name)
    if str(name).startswith(DATASET):
        return _sample(_dataset_documents(str(name))), str(name).removeprefix(DATASET)
    if path.suffix == ".jsonl":
        return _sample(_json_documents(path, read_utf8(path, "text"))), path.stem
    return read_text(name)


def read_tokens(directory: Path, name: str | PathLike[str]) -> tuple[tuple[int, ...], str]:
    """(token ids, name) of a text by the tokenizer in `directory`; kept in the user's cache."""
    content, title = load_text(name)
    if len(content) < CACHED_CHARACTERS:
        return tuple(token_ids(load_tokenizer(directory), content)), title
    digest = hashlib.sha256(content.encode())
    for path in sorted(path for pattern in ("tokenizer*", "vocab*", "merges.txt", "*.model") for path in directory.glob(pattern)):
        digest.update(path.read_bytes())
    store = Store(cache_folder() / "tokens")
    made = store.get_or(digest.hexdigest()[:24], Tokens, lambda: Tokens(tuple(token_ids(load_tokenizer(directory), content))))
    return made.ids, title


def bundled_text_notice(use: str, model: str, option: str) -> str | None:
    """What to say when the bundled text stands in for one of the user's; None for the demo model, whose text it is."""
    if model == DEMO:
        return None
    return f"{use} on the bundled text, Python source of the standard library; give {option} a text like those the model is for"


def _json_documents(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"text file {path}, line {number}: not JSON: {error.msg}; expected an object per line") from error
        if not isinstance(value, dict) or not isinstance(value.get(FIELD), str):
            raise InputError(f"text file {path}, line {number}: no string in the field {FIELD!r}")
        yield value[FIELD]


def _dataset_documents(name: str) -> Iterator[str]:
    """The field `text` of a data set of the hub, "dataset:NAME[/CONFIG][:SPLIT]"; NAME may hold one slash (owner/name)."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"text {name!r} needs the package datasets; pip install 'llmpq[datasets]', or give a file") from None
    path, _, split = name.removeprefix(DATASET).partition(":")
    parts = path.split("/")
    config = parts.pop() if len(parts) == 3 else None
    try:
        rows: Iterable[Any] = load_dataset("/".join(parts), config, split=split or "train")
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"text {name!r}: the data set cannot be loaded: {reason}") from error
    for row in rows:
        if not isinstance(row.get(FIELD), str):
            raise InputError(f"text {name!r}: its rows have no string in the field {FIELD!r}; found {', '.join(row)}")
        yield row[FIELD]


def _sample(documents: Iterable[str]) -> str:
    """Documents in a seeded order, joined by empty lines, until there are enough characters."""
    pool = [document for document in documents if document.strip()]
    random.Random(SEED).shuffle(pool)
    taken, characters = [], 0
    for document in pool:
        if characters >= SAMPLED_CHARACTERS:
            break
        taken.append(document)
        characters += len(document)
    return "\n\n".join(taken)
