"""Prepared: where a benchmark of unlike devices keeps what it made before it measures."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model, its sensitivity and a profile of it, in one folder."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def sensitivity(self) -> Path:
        return self.folder / "sensitivity.json"

    @property
    def profile(self) -> Path:
        return self.folder / "profile.json"
