"""Atomic replacement of an output directory."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmpq.errors import InputError


@contextmanager
def replacing(out: Path, may_replace: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its place when the block ends, and is removed when it raises anything.

    Raises InputError when `out` exists, is not an empty directory and `may_replace(out)` is false.
    """
    require_replaceable(out, may_replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _swap(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_replaceable(out: Path, may_replace: Callable[[Path], bool]) -> None:
    """Raises InputError when `out` exists, is not an empty directory and `may_replace(out)` is false."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or may_replace(out))):
        raise InputError(f"{out}: exists and is not a directory that llmpq wrote; choose another output directory or remove it")


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
