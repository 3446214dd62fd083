"""The user's cache folder: what is made once per machine and found again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """LLMPQ_CACHE, else llmpq in the user's cache directory."""
    chosen = os.environ.get("LLMPQ_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "llmpq"
