"""YAML cursor: a node of a YAML document that knows its place, so that every error names file, line, column and key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import yaml

from llmpq.errors import ClusterError, InputError
from llmpq.suggest import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cursor:
    """`node` of the document `source`; `path` is the way to it, such as devices[0].memory."""

    node: yaml.Node
    source: str
    path: str = ""

    @property
    def place(self) -> str:
        mark = self.node.start_mark
        return ": ".join(filter(None, (f"{self.source}, line {mark.line + 1}, column {mark.column + 1}", self.path)))

    @property
    def found(self) -> str:
        """What stands here, in words."""
        if isinstance(self.node, yaml.ScalarNode):
            return repr(self.node.value) if self.node.value else "nothing"
        return "a list" if isinstance(self.node, yaml.SequenceNode) else "a mapping"

    def error(self, message: str) -> ClusterError:
        return ClusterError(f"{self.place}: {message}")

    def parse(self, parser: Callable[[str], T]) -> T:
        """The scalar here read by `parser`, whose InputError gets the place."""
        try:
            return parser(self.text())
        except InputError as error:
            raise self.error(str(error)) from error

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            raise self.error(f"found {self.found}, expected a single value")
        return str(self.node.value)

    def items(self) -> tuple["Cursor", ...]:
        """The entries of the list here; an empty one is an error."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(f"found {self.found}, expected a list (entries that begin with '- ')")
        if not self.node.value:
            raise self.error("found an empty list, expected at least one entry")
        return tuple(Cursor(node, self.source, f"{self.path}[{i}]") for i, node in enumerate(self.node.value))

    def keys(self, known: tuple[str, ...], required: tuple[str, ...] = ()) -> dict[str, "Cursor"]:
        """The values of the mapping here by key. Unknown, repeated and missing keys are errors."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"found {self.found}, expected a mapping with the keys {', '.join(known)}")
        found: dict[str, Cursor] = {}
        for key_node, value_node in self.node.value:
            key = self._key(key_node, known)
            if key in found:
                raise Cursor(key_node, self.source, self.path).error(f"key {key!r} is given twice; remove one of them")
            found[key] = Cursor(value_node, self.source, f"{self.path}.{key}".lstrip("."))
        for key in required:
            if key not in found:
                raise self.error(f"key {key!r} is missing; add it")
        return found

    def _key(self, node: yaml.Node, known: tuple[str, ...]) -> str:
        cursor = Cursor(node, self.source, self.path)
        key = cursor.text()
        if key not in known:
            raise cursor.error(f"unknown key {key!r}; known are {', '.join(known)}{did_you_mean(key, known)}")
        return key


def read_document(text: str, source: str) -> Cursor:
    """The root of the only document in `text`. Raises ClusterError where it is not YAML or empty."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        problem = error.problem or error.context
        raise ClusterError(f"{place}: not YAML: {problem}; mind indentation, colons and brackets") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ClusterError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if node is None:
        raise ClusterError(f"{source}: the file is empty; expected a mapping with 'devices'")
    return Cursor(node, source)
