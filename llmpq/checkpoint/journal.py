"""Journal: which layers of an unfinished output are written, in a file that is locked while its writer lives."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

JOURNAL_FILE = ".journal"


class Journal:
    """One line of JSON for each finished layer, in a directory that becomes an output. `open` takes the lock, `close` frees it.

    The lock goes with the process, however that ends, so an unlocked directory is one that somebody left behind.
    """

    def __init__(self, directory: Path, file: Any) -> None:
        self.directory = directory
        self._file = file
        self._finished: dict[int, Any] = {}
        whole, _, torn = file.read().rpartition(b"\n")
        file.truncate(file.seek(-len(torn), os.SEEK_END))
        for line in whole.splitlines():
            entry = json.loads(line)
            self._finished[entry["layer"]] = entry["report"]

    @classmethod
    def open(cls, directory: Path) -> Self | None:
        """The journal of a directory, a new one where there is none; None while another process has it open."""
        file = (directory / JOURNAL_FILE).open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        file.seek(0)
        return cls(directory, file)

    @property
    def finished(self) -> Mapping[int, Any]:
        """Layer -> what was reported of it, a JSON value."""
        return self._finished

    def add(self, layer: int, report: Any) -> None:
        """`layer` is on the disk for good; to be called after its bytes are."""
        self._file.write(json.dumps({"layer": layer, "report": report}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._finished[layer] = report

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """The directory is complete."""
        (self.directory / JOURNAL_FILE).unlink()
