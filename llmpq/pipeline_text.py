"""PassSpec: a pass and its options as written in a pipeline, and the text of pipelines."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmpq.errors import InputError

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*|[a-z0-9]+(?:-[a-z0-9]+)*")
_KEY = re.compile(r"[a-z][\w-]*")
_BARE = re.compile(r'[^\s,{}="]+')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class PassSpec:
    """`name`: of a known pass, or module:Class; `options`: (key, value) as text, in the order written."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        written = ",".join(f"{key}={_quoted(value)}" for key, value in self.options)
        return f"{self.name}{{{written}}}" if written else self.name


def format_specs(specs: Sequence[PassSpec]) -> str:
    """The canonical text: no spaces, quotes only where they are needed; `parse_specs` is the inverse."""
    return ",".join(map(str, specs))


def parse_specs(text: str) -> tuple[PassSpec, ...]:
    """The passes of 'derive-costs,assign-joint{gap=1e-4},mine:MyPass{text="a, b"}'. Raises InputError with the column."""
    reader = _Reader(text)
    specs = [_spec(reader)]
    while reader.take(","):
        specs.append(_spec(reader))
    if not reader.at_end:
        raise reader.error("a comma or the end")
    return tuple(specs)


def _spec(reader: "_Reader") -> PassSpec:
    name = reader.match(_NAME, "a pass name such as assign-joint, or module:Class")
    if not reader.take("{"):
        return PassSpec(name)
    options = [] if reader.sees("}") else [_option(reader)]
    while reader.take(","):
        options.append(_option(reader))
    if not reader.take("}"):
        raise reader.error("a comma or a closing brace")
    return PassSpec(name, tuple(options))


def _option(reader: "_Reader") -> tuple[str, str]:
    key = reader.match(_KEY, "an option name").replace("-", "_")
    if not reader.take("="):
        raise reader.error(f"an equals sign behind option {key}")
    if reader.sees('"'):
        return key, json.loads(reader.match(_QUOTED, "a closing quote"), strict=False)
    return key, reader.match(_BARE, f"a value of option {key}")


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)


class _Reader:
    """A position in the text; spaces between tokens are skipped."""

    def __init__(self, text: str) -> None:
        self._text, self._position = text, 0
        self._skip()

    @property
    def at_end(self) -> bool:
        return self._position == len(self._text)

    def sees(self, character: str) -> bool:
        return self._text.startswith(character, self._position)

    def take(self, character: str) -> bool:
        """Step over the character where it comes next; whether it did."""
        found = self.sees(character)
        if found:
            self._position += 1
            self._skip()
        return found

    def match(self, pattern: re.Pattern[str], expected: str) -> str:
        found = pattern.match(self._text, self._position)
        if found is None:
            raise self.error(expected)
        self._position = found.end()
        self._skip()
        return found.group()

    def error(self, expected: str) -> InputError:
        found = repr(self._text[self._position]) if not self.at_end else "the end"
        return InputError(f"pipeline {self._text!r}, column {self._position + 1}: found {found}, expected {expected}")

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._position)
        self._position = space.end() if space else self._position
