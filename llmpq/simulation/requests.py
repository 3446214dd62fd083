"""Requests: when prompts arrive and how long they and their answers are; read from a trace, or drawn."""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, TextIO

from llmpq.errors import InputError

# What public traces call the three columns: vidur (Splitwise), the Azure traces as published, plain words.
_ARRIVAL = ("arrived_at", "arrival_s", "timestamp", "TIMESTAMP")
_PROMPT = ("num_prefill_tokens", "prompt_len", "prompt_tokens", "ContextTokens")
_ANSWER = ("num_decode_tokens", "gen_len", "output_tokens", "GeneratedTokens")


@dataclass(frozen=True, slots=True)
class Request:
    """`arrival_s`: seconds from the start; prompt_len and gen_len: tokens, at least 1 each."""

    arrival_s: float
    prompt_len: int
    gen_len: int


def poisson(rate_per_s: float, prompt_len: int, gen_len: int, count: int, seed: int = 0) -> tuple[Request, ...]:
    """`count` equal requests whose arrivals are a Poisson process of `rate_per_s`."""
    random = Random(seed)
    now, requests = 0.0, []
    for _ in range(count):
        now += random.expovariate(rate_per_s)
        requests.append(Request(now, prompt_len, gen_len))
    return tuple(requests)


def read_trace(path: Path, limit: int | None = None) -> tuple[Request, ...]:
    """The requests of a CSV or JSONL file (also .gz), by arrival, the first at 0 s; `limit`: at most so many.

    Columns: arrival in seconds (arrived_at, arrival_s or timestamp), prompt and answer in tokens (num_prefill_tokens and
    num_decode_tokens, or prompt_len and gen_len). Raises InputError naming file, line and column.
    """
    try:
        with _open(path) as file:
            found = list(islice(_rows(path, file), limit))
    except OSError as error:
        raise InputError(f"trace {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"trace {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if not found:
        raise InputError(f"trace {path} has no requests; expected a line per request")
    found.sort(key=lambda request: request.arrival_s)
    start = found[0].arrival_s
    return tuple(Request(request.arrival_s - start, request.prompt_len, request.gen_len) for request in found)


def _open(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _rows(path: Path, file: TextIO) -> Iterator[Request]:
    lines: Iterable[dict[str, Any]] = _jsonl(path, file) if ".jsonl" in path.suffixes else csv.DictReader(file)
    for number, row in enumerate(lines, 1 if ".jsonl" in path.suffixes else 2):
        where = f"trace {path}, line {number}"
        prompt, answer = (int(_number(where, row, names)) for names in (_PROMPT, _ANSWER))
        if min(prompt, answer) < 1:
            raise InputError(f"{where}: prompt of {prompt} and answer of {answer} tokens; expected at least 1 each")
        yield Request(_number(where, row, _ARRIVAL), prompt, answer)


def _jsonl(path: Path, file: TextIO) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            raise InputError(f"trace {path}, line {number}: found {line.strip()[:40]!r}, expected a JSON object") from None


def _number(where: str, row: dict[str, Any], names: tuple[str, ...]) -> float:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise InputError(f"{where}: none of the columns {', '.join(names)}; found {', '.join(map(str, row))}")
    try:
        return float(row[name])
    except ValueError:
        raise InputError(f"{where}, column {name}: found {row[name]!r}, expected a number") from None
