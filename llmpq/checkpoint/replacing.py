"""Atomic replacement of an output directory, and what an interrupted one leaves to the next."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmpq.checkpoint.journal import Journal
from llmpq.errors import InputError


@contextmanager
def replacing(out: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its place when the block ends, and is removed when it raises anything.

    Raises InputError when `out` exists, is not an empty directory and `may_replace(out)` is false.
    """
    with resuming(out, may_replace, str(os.getpid())) as journal:
        yield journal.directory


@contextmanager
def resuming(out: Path, may_replace: Callable[[Path], bool], key: str) -> Iterator[Journal]:
    """Like `replacing`, but a sibling that a killed process left under the same `key` is given back with its journal.

    Siblings of other keys that no living process writes to are removed. Raises InputError also while another process writes the
    same output under the same key.
    """
    require_replaceable(out, may_replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial-{key}"
    _clean_up(out, partial)
    partial.mkdir(exist_ok=True)
    journal = Journal.open(partial)
    if journal is None:
        raise InputError(f"{out}: another process is writing it; wait for it or choose another output directory")
    try:
        yield journal
        journal.remove()
        _swap(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        journal.close()


def require_replaceable(out: Path, may_replace: Callable[[Path], bool]) -> None:
    """Raises InputError when `out` exists, is not an empty directory and `may_replace(out)` is false."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or may_replace(out))):
        raise InputError(f"{out}: exists and is not a directory that llmpq wrote; choose another output directory or remove it")


def _clean_up(out: Path, wanted: Path) -> None:
    """Puts back what a process killed while it swapped had moved away; removes unfinished siblings that nobody writes to."""
    for path in sorted(out.parent.iterdir()):
        if path.name.startswith(f".{out.name}.replaced-"):
            if out.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(out)
        elif path.name.startswith(f".{out.name}.partial-") and path != wanted:
            journal = Journal.open(path)
            if journal is not None:
                shutil.rmtree(path, ignore_errors=True)
                journal.close()


def _swap(temporary: Path, out: Path) -> None:
    """`temporary` becomes `out`; an earlier `out` comes back if that fails."""
    if not out.exists():
        temporary.rename(out)
        return
    earlier = out.parent / f".{out.name}.replaced-{os.getpid()}"
    out.rename(earlier)
    try:
        temporary.rename(out)
    except BaseException:
        earlier.rename(out)
        raise
    shutil.rmtree(earlier)
