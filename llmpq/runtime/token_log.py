"""TokenLog: the tokens of a job in a file, as they come, so that another run goes on where this one ended."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from llmpq.errors import InputError
from llmpq.runtime.job import Job, encode
from llmpq.runtime.progress import NewToken

FORMAT = "llmpq-tokens-1"


@dataclass(frozen=True, slots=True)
class TokenLog:
    """A line of JSON that names the job, then one per token: sequence, token id, log-probability.

    `before`: what the file held when it was opened.
    """

    before: tuple[NewToken, ...]
    _file: IO[str]

    def write(self, token: NewToken) -> None:
        self._file.write(json.dumps(token) + "\n")
        self._file.flush()


@contextmanager
def token_log(path: Path, job: Job) -> Iterator[TokenLog]:
    """The log of a job in a new file, or in one that holds the job's first tokens; a last line that is cut off is dropped.

    Raises InputError for a file that is something else, or of another job: other prompts or another way of sampling.
    """
    head = json.dumps({"format": FORMAT, "job": sha256(encode(job).encode()).hexdigest()})
    held = path.read_bytes().decode(errors="replace") if path.exists() else ""
    lines = held.split("\n")[:-1]
    if held and lines[:1] != [head]:
        raise InputError(f"{path}: holds no tokens of these prompts, sampled in this way; give another file to --resume")
    before = tuple(_token(path, line) for line in lines[1:])
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in [head, *lines[1:]])
        file.flush()
        yield TokenLog(before, file)


def _token(path: Path, line: str) -> NewToken:
    try:
        sequence, token, log_prob = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: found {line!r}, expected sequence, token and log-probability; delete the file") from error
    return int(sequence), int(token), float(log_prob)
