"""Rule syntax: tokens and the tree of one constraint of the user's language."""

import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from llmpq.errors import RuleError

Operator = Literal["<=", ">=", "==", "!=", "<", ">", "in"]
Attribute = Literal["bits", "precision", "device", "layers"]
LAYER_ATTRIBUTES: tuple[Attribute, ...] = ("bits", "precision", "device")
DEVICE_ATTRIBUTES: tuple[Attribute, ...] = ("bits", "precision", "layers")
SUBJECTS = "layers[0:2].bits, layers[3].device, first_layer, last_layer, device('T4:0').precision, average_bits or count(w4a16)"
TOKEN = re.compile(
    r"\s*(?:(?P<string>'[^']*'|\"[^\"]*\")|(?P<operator><=|>=|==|!=|<|>)|(?P<mark>[\[\](){}.,:])|(?P<number>-?\d+(?:\.\d+)?(?![\w/]))"
    r"|(?P<word>\w[\w+/-]*))"
)


@dataclass(frozen=True, slots=True)
class Name:
    """A device or precision as the user wrote it; `column` counts from 1."""

    text: str
    column: int


@dataclass(frozen=True, slots=True)
class Layers:
    """Layers [start, stop) as written: negative counts from the end, None is open; `stop` is `single` for one layer."""

    start: int | None
    stop: int | None
    single: bool
    column: int
    attribute: Attribute


@dataclass(frozen=True, slots=True)
class Device:
    name: Name
    attribute: Attribute


@dataclass(frozen=True, slots=True)
class Count:
    name: Name


@dataclass(frozen=True, slots=True)
class AverageBits:
    pass


Subject = Layers | Device | Count | AverageBits
Operand = float | tuple[Name, ...] | Layers


@dataclass(frozen=True, slots=True)
class Comparison:
    """subject operator operand; columns of the operator and of the operand, from 1."""

    subject: Subject
    operator: Operator
    operand: Operand
    operator_column: int
    operand_column: int


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


def parse_comparison(text: str) -> Comparison:
    """The tree of a constraint; RuleError carries the column where it stops making sense."""
    return _Parser(text, _tokens(text)).comparison()


def _tokens(text: str) -> tuple[_Token, ...]:
    found, at = [], 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            hint = "close the quote" if text[at] in "'\"" else "remove it"
            raise RuleError(f"unexpected {text[at]!r}; {hint}", text, at + 1)
        found.append(_Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        at = match.end()
    return (*found, _Token("end", "", len(text) + 1))


@dataclass(slots=True)
class _Parser:
    """Recursive descent over the tokens of one rule."""

    text: str
    tokens: tuple[_Token, ...]
    position: int = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def fail(self, expected: str, token: _Token | None = None) -> NoReturn:
        at = token or self.token
        found = repr(at.text) if at.text else "the end"
        raise RuleError(f"found {found}, expected {expected}", self.text, at.column)

    def take(self, expected: str, *texts: str, kind: str | None = None) -> _Token:
        token = self.token
        if (texts and token.text not in texts) or (kind and token.kind != kind) or token.kind == "end":
            self.fail(expected)
        self.position += 1
        return token

    def comparison(self) -> Comparison:
        subject = self.subject()
        operator = self.take("one of <= >= == != < > in", "<=", ">=", "==", "!=", "<", ">", "in")
        column = self.token.column
        operand = self.operand(subject, operator)
        if self.token.kind != "end":
            self.fail("the end; give one comparison a constraint, and two constraints for two")
        return Comparison(subject, operator.text, operand, operator.column, column)  # type: ignore[arg-type]

    def subject(self) -> Subject:
        token = self.take(SUBJECTS)
        if token.text == "average_bits":
            return AverageBits()
        if token.text in ("layers", "first_layer", "last_layer"):
            return self.layers(token)
        if token.text in ("count", "device"):
            self.take("'('", "(")
            name = self.name("a device such as 'T4:0'" if token.text == "device" else "a precision such as w4a16")
            self.take("')'", ")")
            return Count(name) if token.text == "count" else Device(name, self.attribute(DEVICE_ATTRIBUTES))
        self.fail(SUBJECTS, token)

    def layers(self, head: _Token) -> Layers:
        if head.text != "layers":
            only = 0 if head.text == "first_layer" else -1
            return Layers(only, None, True, head.column, self.attribute(LAYER_ATTRIBUTES))
        self.take("'[' after layers, as in layers[0:2]", "[")
        start, stop, single = self.span()
        self.take("']'", "]")
        return Layers(start, stop, single, head.column, self.attribute(LAYER_ATTRIBUTES))

    def span(self) -> tuple[int | None, int | None, bool]:
        start = None if self.token.text == ":" else self.integer()
        if self.token.text != ":":
            return start, None, True
        self.take("':'", ":")
        return start, None if self.token.text == "]" else self.integer(), False

    def integer(self) -> int:
        token = self.take("a layer number", kind="number")
        if "." in token.text:
            self.fail("a whole layer number", token)
        return int(token.text)

    def attribute(self, allowed: tuple[Attribute, ...]) -> Attribute:
        expected = "one of " + " ".join(f".{name}" for name in allowed)
        self.take(expected, ".")
        token = self.take(expected, *allowed)
        return next(name for name in allowed if name == token.text)

    def name(self, expected: str) -> Name:
        token = self.token
        if token.kind not in ("string", "word", "number"):
            self.fail(expected)
        self.position += 1
        return Name(token.text.strip("'\""), token.column)

    def operand(self, subject: Subject, operator: _Token) -> Operand:
        named = isinstance(subject, Layers | Device) and subject.attribute in ("precision", "device")
        if named and operator.text not in ("==", "!=", "in"):
            self.fail("one of == != in; a precision or device has no order", operator)
        if operator.text == "in":
            return (
                self.names()
                if named
                else self.fail("a comparison with a number; only precision and device can be in a set", operator)
            )
        if not named:
            return float(self.take("a number", kind="number").text)
        if (
            isinstance(subject, Layers)
            and subject.attribute == "device"
            and self.token.text in ("layers", "first_layer", "last_layer")
        ):
            return self.other_layers()
        return (self.name("a name"),)

    def other_layers(self) -> Layers:
        head = self.take("a layer")
        other = self.layers(head)
        return other if other.attribute == "device" else self.fail("a .device to compare with a .device", head)

    def names(self) -> tuple[Name, ...]:
        self.take("'{', as in {w8a16, w4a16}", "{")
        names = [self.name("a name")]
        while self.take("',' or '}'", ",", "}").text == ",":
            names.append(self.name("a name"))
        return tuple(names)
