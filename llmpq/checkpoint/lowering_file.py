"""Lowering: the passes between a plan and the stages that run, recorded beside the shards where they are not llmpq's alone."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from llmpq.errors import CheckpointError, InputError, LlmpqWarning
from llmpq.passmanager import LOWERING, Pass, format_pipeline, load_pass, parse_pipeline, pass_spec
from llmpq.serialize import dumps, loads

LOWERING_FILE = "lowering.json"
FORMAT = "llmpq-lowering-1"


@dataclass(frozen=True, slots=True)
class OwnPass:
    """A pass of the user's, as module:Class, and the sha256 of the module's source when the model was compiled."""

    name: str
    source_sha256: str


@dataclass(frozen=True, slots=True)
class Lowering:
    """`passes`: a pipeline as text."""

    passes: str = LOWERING
    own: tuple[OwnPass, ...] = ()
    format: str = FORMAT

    @staticmethod
    def of(passes: Sequence[Pass]) -> "Lowering":
        """Raises InputError for a pass that a later process could not find or build again."""
        text = format_pipeline(passes)
        own = {spec.name: OwnPass(spec.name, _digest(spec.name)) for spec in map(pass_spec, passes) if ":" in spec.name}
        if parse_pipeline(text) != tuple(passes):
            raise InputError(f"pipeline {text!r} does not give the same passes back; options must be bool, int, float or str")
        return Lowering(text, tuple(own.values()))

    def write(self, directory: Path) -> None:
        """Leave no file where the pipeline is llmpq's own: another version may then have a better one."""
        path = directory / LOWERING_FILE
        if self == LLMPQS_OWN:
            path.unlink(missing_ok=True)
        else:
            path.write_text(dumps(self), encoding="utf-8")

    @staticmethod
    def read(directory: Path) -> "Lowering":
        path = directory / LOWERING_FILE
        found = loads(Lowering, path.read_text(encoding="utf-8"), str(path)) if path.is_file() else LLMPQS_OWN
        if found.format != FORMAT:
            raise CheckpointError(f"{path}: format {found.format!r}, expected {FORMAT!r}; compile the model again")
        return found

    def load(self, directory: Path) -> tuple[Pass, ...]:
        """The passes, with a warning for each of the user's whose module has changed since.

        Raises CheckpointError for a pass that is not there any more.
        """
        try:
            passes = parse_pipeline(self.passes)
            changed = tuple(self._changed())
        except InputError as error:
            raise CheckpointError(f"{directory}: was compiled with a pass that is not here: {error}") from error
        for name in changed:
            text = f"{directory}: the module of pass {name} has changed since the model was compiled; it may run differently now"
            warnings.warn(text, LlmpqWarning, stacklevel=3)
        return passes

    @property
    def own_names(self) -> tuple[str, ...]:
        return tuple(own.name for own in self.own)

    def _changed(self) -> Iterator[str]:
        yield from (own.name for own in self.own if _digest(own.name) != own.source_sha256)


LLMPQS_OWN = Lowering()


def _digest(name: str) -> str:
    """Of the file that the pass is written in."""
    if "<locals>" in name:
        raise InputError(
            f"pass {name} is defined inside a function; put it into a module, where the compiled model finds it again"
        )
    source = import_module(load_pass(name).__module__).__file__
    if source is None:
        raise InputError(f"pass {name} has no file; put it into a module, where the compiled model finds it again")
    return sha256(Path(source).read_bytes()).hexdigest()
