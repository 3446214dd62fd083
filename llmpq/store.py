"""Store: values by name in a folder, a JSON file each, so that what was made once is found again."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmpq.errors import InputError
from llmpq.serialize import dumps, loads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """A process that is killed loses only the value that it was making: files appear whole."""

    folder: Path

    def get(self, name: str, cls: type[T]) -> T | None:
        """The value of that name; None where there is none, or the file does not hold one."""
        path = self.folder / f"{name}.json"
        try:
            return loads(cls, path.read_text(encoding="utf-8"), str(path))
        except (FileNotFoundError, InputError, UnicodeDecodeError):
            return None

    def put(self, name: str, value: T) -> T:
        """Keep `value`; it is returned. A folder that cannot be written keeps nothing."""
        partial = self.folder / f".{name}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(dumps(value), encoding="utf-8")
            partial.replace(self.folder / f"{name}.json")
        except OSError:
            with suppress(OSError):
                partial.unlink()
        return value

    def get_or(self, name: str, cls: type[T], make: Callable[[], T]) -> T:
        found = self.get(name, cls)
        return self.put(name, make()) if found is None else found
