"""Rules: the user's constraints, each of them linear rows over z[layer, device, option]."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmpq.errors import RuleError
from llmpq.layer_option import SEPARATOR, mean_bits, parse_option
from llmpq.precision import PRECISIONS
from llmpq.solver.problem import Problem, Row, Sense
from llmpq.solver.rule_syntax import Comparison, Count, Device, Layers, Name, Operator, parse_comparison

__all__ = ["Row", "Rule", "RuleContext", "parse_rule", "parse_rules", "rule_rows"]

Cell = tuple[int, int, int]  # layer, device, option


@dataclass(frozen=True, slots=True)
class RuleContext:
    """What rules speak of: `devices` in pipeline order, `known_devices` all there are; weight bits, parameters of a layer.

    An option such as w4a16/w8a8 keeps a rule about bits or precisions when both of its parts do; its `option_bits` are the mean.
    """

    num_layers: int
    devices: tuple[str, ...]
    known_devices: tuple[str, ...]
    options: tuple[str, ...]
    option_bits: tuple[float, ...]
    layer_parameters: tuple[int, ...]

    @staticmethod
    def of(problem: Problem, parameters: tuple[int, ...], known_devices: tuple[str, ...] = ()) -> "RuleContext":
        """The context of a problem whose options are names of precisions."""
        bits = tuple(mean_bits(parse_option(option)) for option in problem.options)
        known = tuple(dict.fromkeys((*known_devices, *problem.devices)))
        return RuleContext(problem.num_layers, problem.devices, known, problem.options, bits, parameters)

    def cells(self, layers: Iterable[int] | None = None) -> list[Cell]:
        chosen = range(self.num_layers) if layers is None else layers
        return [(i, j, b) for i in chosen for j in range(len(self.devices)) for b in range(len(self.options))]


@dataclass(frozen=True, slots=True)
class Rule:
    """One constraint: the user's text, and its tree."""

    text: str
    comparison: Comparison = field(repr=False)

    def rows(self, context: RuleContext) -> tuple[Row, ...]:
        """Linear rows that hold exactly when the rule does.

        A device of the cluster outside the pipeline holds no layer, a precision outside the options is never chosen: rules
        that need them are infeasible, not ignored. Raises RuleError, with the column, for what nobody knows.
        """
        return _Rows(self.text, self.comparison, context).rows()


def parse_rule(text: str) -> Rule:
    """The rule of a text such as "layers[0:2].bits >= 8"; RuleError carries the column."""
    return Rule(text.strip(), parse_comparison(text.strip()))


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    return tuple(parse_rule(text) for text in texts)


def rule_rows(rules: tuple[Rule, ...], context: RuleContext) -> tuple[Row, ...]:
    """Rows of all rules."""
    return tuple(row for rule in rules for row in rule.rows(context))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one comparison in one context."""

    text: str
    comparison: Comparison
    context: RuleContext

    def rows(self) -> tuple[Row, ...]:
        subject, operand = self.comparison.subject, self.comparison.operand
        if isinstance(subject, Layers) and isinstance(operand, Layers):
            return self._same_device(subject, operand)
        if isinstance(subject, Layers):
            return self._forbid(self._outside(subject.attribute, self.context.cells(self._layers(subject))))
        if isinstance(subject, Device):
            return self._device(subject)
        if isinstance(subject, Count):
            option = self._option(subject.name)
            return self._number([(cell, 1.0) for cell in self.context.cells() if cell[2] == option])
        return self._average()

    def _row(self, terms: list[tuple[Cell, float]], sense: Sense, rhs: float) -> Row:
        return Row(self.text, tuple((*cell, coefficient) for cell, coefficient in terms), sense, rhs)

    def _forbid(self, cells: list[Cell]) -> tuple[Row, ...]:
        return (self._row([(cell, 1.0) for cell in cells], "<=", 0.0),)

    def _fail(self, message: str, column: int) -> RuleError:
        return RuleError(message, self.text, column)

    def _device(self, subject: Device) -> tuple[Row, ...]:
        """Rows of device('X').attribute; outside the pipeline it has no cells."""
        device = self._device_index(subject.name)
        cells = [cell for cell in self.context.cells() if cell[1] == device]
        if subject.attribute == "layers":
            return self._number([(cell, 1.0) for cell in cells])
        return self._forbid(self._outside(subject.attribute, cells))

    def _outside(self, attribute: str, cells: list[Cell]) -> list[Cell]:
        """The cells among these that break the comparison of a bits, precision or device."""
        operator, operand = self.comparison.operator, self.comparison.operand
        if isinstance(operand, float):
            return [cell for cell in cells if not all(_compare(bits, operator, operand) for bits in self._bits(cell[2]))]
        assert isinstance(operand, tuple)
        if attribute == "device":
            devices = {self._device_index(name) for name in operand}
            return [cell for cell in cells if (cell[1] in devices) == (operator == "!=")]
        named = {self._option_name(name) for name in operand}
        return [cell for cell in cells if not self._is_meant(cell[2], named, operator)]

    def _is_meant(self, option: int, named: set[str], operator: Operator) -> bool:
        """Whether an option, or each of its parts, is one of those named; with != none of them."""
        name = self.context.options[option]
        parts = name.split(SEPARATOR)
        if operator == "!=":
            return name not in named and named.isdisjoint(parts)
        return name in named or named.issuperset(parts)

    def _bits(self, option: int) -> tuple[float, ...]:
        """Weight bits of every part of an option."""
        name = self.context.options[option]
        if SEPARATOR not in name:
            return (self.context.option_bits[option],)
        return tuple(float(precision.num_bits) for precision in parse_option(name).parts)

    def _same_device(self, left: Layers, right: Layers) -> tuple[Row, ...]:
        pairs = [(a, b) for a in self._layers(left) for b in self._layers(right) if a != b]
        different = self.comparison.operator == "!="
        if different and len(pairs) < len(self._layers(left)) * len(self._layers(right)):
            raise self._fail("a layer cannot be on another device than itself; name two layers", self.comparison.operand_column)
        return tuple(
            self._row(
                self._on(a, device, 1.0) + self._on(b, device, 1.0 if different else -1.0),
                *(("<=", 1.0) if different else ("==", 0.0)),
            )
            for a, b in pairs
            for device in range(len(self.context.devices))
        )

    def _on(self, layer: int, device: int, coefficient: float) -> list[tuple[Cell, float]]:
        return [((layer, device, option), coefficient) for option in range(len(self.context.options))]

    def _number(self, terms: list[tuple[Cell, float]]) -> tuple[Row, ...]:
        """A row for a count, which is whole: < and > move to the next whole number."""
        operator, limit = self.comparison.operator, self.comparison.operand
        assert isinstance(limit, float)
        if operator == "<":
            return (self._row(terms, "<=", math.ceil(limit) - 1.0),)
        if operator == ">":
            return (self._row(terms, ">=", math.floor(limit) + 1.0),)
        return (self._row(terms, self._sense("<= >= == < >"), limit),)

    def _average(self) -> tuple[Row, ...]:
        """average_bits <= x: sum of bits * parameters <= x * parameters of all layers."""
        assert isinstance(self.comparison.operand, float)
        weights = self.context.layer_parameters
        terms = [(cell, self.context.option_bits[cell[2]] * weights[cell[0]]) for cell in self.context.cells()]
        return (self._row(terms, self._sense("<= >= =="), self.comparison.operand * sum(weights)),)

    def _sense(self, allowed: str) -> Sense:
        for sense in ("<=", ">=", "=="):
            if sense == self.comparison.operator:
                return sense
        raise self._fail(
            f"{self.comparison.operator} is not possible here; use one of {allowed}", self.comparison.operator_column
        )

    def _layers(self, layers: Layers) -> range:
        count = self.context.num_layers
        inside = range(-count, count)
        for bound in (layers.start, layers.stop):
            if bound is not None and bound not in inside and (layers.single or bound != count):
                raise self._fail(f"layer {bound} is unknown; the model has layers 0 to {count - 1}", layers.column)
        if layers.single and layers.start is not None:
            return range(layers.start % count, layers.start % count + 1)
        chosen = range(count)[layers.start : layers.stop]
        if not chosen:
            raise self._fail("the range holds no layer; its end is not included", layers.column)
        return chosen

    def _device_index(self, name: Name) -> int | None:
        """Index in the pipeline; None for a device of the cluster that is not in it. Case does not matter."""
        key = name.text.lower()
        known = tuple(dict.fromkeys((*self.context.known_devices, *self.context.devices)))
        if key not in (device.lower() for device in known):
            raise self._fail(f"device {name.text!r} is unknown; known are {', '.join(known)}", name.column)
        return next((index for index, device in enumerate(self.context.devices) if device.lower() == key), None)

    def _option(self, name: Name) -> int | None:
        """Index among the options; None for a precision that is known and not among them."""
        key = self._option_name(name)
        return self.context.options.index(key) if key in self.context.options else None

    def _option_name(self, name: Name) -> str:
        aliases = {"bf16": "16", "fp16": "16", "w16a16": "16"}
        key = aliases.get(name.text.lower(), name.text.lower())
        if key not in self.context.options and not set(key.split(SEPARATOR)) <= PRECISIONS.keys():
            known = ", ".join(dict.fromkeys((*self.context.options, *PRECISIONS)))
            raise self._fail(f"precision {name.text!r} is unknown; known are {known}", name.column)
        return key


def _compare(bits: float, operator: Operator, limit: float) -> bool:
    results = {"<=": bits <= limit, ">=": bits >= limit, "==": bits == limit, "!=": bits != limit, "<": bits < limit}
    return results.get(operator, bits > limit)
