"""OutputFile: an option that names a file to write, refused before the work when it cannot be written."""

import os
from pathlib import Path
from typing import Any

import click


class OutputFile(click.Path):
    """A path to a file in a folder that exists."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        folder = path.parent
        if not folder.is_dir():
            self.fail(f"{path} cannot be written: there is no folder {folder}; make it, or name another file", param, ctx)
        return path
