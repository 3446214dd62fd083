"""Output directories: which ones llmpq wrote, told without torch."""

import json
from pathlib import Path

from llmpq.errors import InputError

MANIFEST_FORMAT = "llmpq-manifest-1"
MANIFEST_FILE = "manifest.json"


def is_output(directory: Path) -> bool:
    """Whether `directory` is one that llmpq wrote (its manifest says so; the rest is not looked at)."""
    try:
        value = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("format") == MANIFEST_FORMAT


def require_output(directory: Path) -> None:
    """Raises InputError for a directory that holds no compiled model, or several."""
    if is_output(directory):
        return
    if (directory / "replica-0").is_dir():
        one = directory / "replica-0"
        raise InputError(f"{directory}: holds replicas, each a compiled model; give one of them, such as {one}")
    raise InputError(f"{directory}: is not a compiled model; `llmpq compile MODEL --cluster C -o {directory}` makes one")
