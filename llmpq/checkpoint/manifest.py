"""Manifest: size and checksum of every file of an output directory, and which engines load it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmpq.checkpoint.journal import JOURNAL_FILE
from llmpq.checkpoint.output_checks import REMEDY, structural_problems
from llmpq.checkpoint.output_directory import MANIFEST_FILE, MANIFEST_FORMAT
from llmpq.checkpoint.output_directory import is_output as is_output
from llmpq.checkpoint.reader import read_json
from llmpq.errors import CheckpointError
from llmpq.serialize import dumps, from_json

NOT_LISTED = (MANIFEST_FILE, "build.json", "report.html", JOURNAL_FILE)
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`engines`: engine -> True, or the reason why it does not load the checkpoint. `smoothed`: norms whose weights are not the
    source's, because they took over scales of the w8a8 linears that read them."""

    files: Mapping[str, FileEntry]
    engines: Mapping[str, bool | str]
    smoothed: tuple[str, ...] = ()

    @classmethod
    def of(cls, directory: Path, engines: Mapping[str, bool | str], smoothed: tuple[str, ...] = ()) -> "Manifest":
        """Reads every file of `directory` once."""
        names = sorted(path.name for path in directory.iterdir() if path.is_file() and path.name not in NOT_LISTED)
        files = {name: FileEntry((directory / name).stat().st_size, sha256(directory / name)) for name in names}
        return cls(files, engines, smoothed)

    @classmethod
    def read(cls, out: Path) -> "Manifest":
        value = read_json(out / MANIFEST_FILE)
        if value.get("format") != MANIFEST_FORMAT:
            raise CheckpointError(
                f"{out / MANIFEST_FILE}: format {value.get('format')!r}, expected {MANIFEST_FORMAT!r}; {REMEDY}"
            )
        files, engines = value.get("files"), value.get("engines")
        if not isinstance(files, dict) or not isinstance(engines, dict):
            raise CheckpointError(f"{out / MANIFEST_FILE}: no files or engines; {REMEDY}")
        entries = {name: from_json(FileEntry, entry, f"{MANIFEST_FILE}.files.{name}") for name, entry in files.items()}
        smoothed: tuple[str, ...] = from_json(tuple[str, ...], value.get("smoothed", []), f"{MANIFEST_FILE}.smoothed")
        return cls(entries, engines, smoothed)

    def write(self, directory: Path) -> None:
        value = {"format": MANIFEST_FORMAT, "files": self.files, "engines": self.engines, "smoothed": self.smoothed}
        (directory / MANIFEST_FILE).write_text(dumps(value), encoding="utf-8")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_size(out: Path, name: str) -> None:
    """The cheap check: the file is there, listed, and as long as the manifest says. Raises CheckpointError."""
    manifest = Manifest.read(out)
    if name not in manifest.files:
        raise CheckpointError(f"{out / name}: not in {MANIFEST_FILE}; {REMEDY}")
    problem = _size_problem(out, name, manifest.files[name])
    if problem is not None:
        raise CheckpointError(problem)


def check_bytes(out: Path, name: str) -> None:
    """The whole check of one file, which reads all of it. Raises CheckpointError."""
    check_size(out, name)
    problem = _bytes_problem(out, name, Manifest.read(out).files[name])
    if problem is not None:
        raise CheckpointError(problem)


def file_problems(out: Path, manifest: Manifest) -> Iterator[str]:
    """One line for each file that is missing, truncated or altered; reads every byte."""
    for name, entry in manifest.files.items():
        problem = _size_problem(out, name, entry) or _bytes_problem(out, name, entry)
        if problem is not None:
            yield problem


def _bytes_problem(out: Path, name: str, entry: FileEntry) -> str | None:
    found = sha256(out / name)
    if found == entry.sha256:
        return None
    return f"{out / name}: altered: sha256 {found[:12]}…, expected {entry.sha256[:12]}…; {REMEDY}"


def _size_problem(out: Path, name: str, entry: FileEntry) -> str | None:
    path = out / name
    if not path.is_file():
        return f"{path}: missing, expected {entry.bytes} bytes; {REMEDY}"
    size = path.stat().st_size
    if size == entry.bytes:
        return None
    return f"{path}: {'truncated' if size < entry.bytes else 'altered'}: {size} bytes, expected {entry.bytes}; {REMEDY}"


def problems(out: Path) -> tuple[str, ...]:
    """Everything wrong with an output directory, one line each; names and shapes are looked at once the bytes are right."""
    damaged = tuple(file_problems(out, Manifest.read(out)))
    return damaged or tuple(structural_problems(out))


def verify(out: Path) -> Manifest:
    """The manifest of a sound output directory; CheckpointError with every problem otherwise."""
    found = problems(out)
    if found:
        raise CheckpointError("; ".join(found))
    return Manifest.read(out)
