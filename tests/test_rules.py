"""The constraint language: what parses, what it means, and where errors point."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from llmpq.errors import RuleError
from llmpq.solver.problem import Assignment
from llmpq.solver.rules import RuleContext, parse_rule, parse_rules, rule_rows

CONTEXT = RuleContext(
    num_layers=3,
    devices=("T4:0", "L4:1"),
    known_devices=("T4:0", "L4:1", "A100-40:0"),
    options=("w4a16", "w8a16", "16"),
    option_bits=(4, 8, 16),
    layer_parameters=(100, 100, 200),
)
BITS = (4, 8, 16)
EVERY = [
    Assignment(device, option) for device in product(range(2), repeat=3) for option in product(range(3), repeat=3)
]  # contiguous or not: rules know nothing of order


def bits(a: Assignment) -> list[int]:
    return [BITS[b] for b in a.option]


MEANINGS: dict[str, Callable[[Assignment], bool]] = {
    "layers[0:2].bits >= 8": lambda a: min(bits(a)[:2]) >= 8,
    "layers[:].bits < 16": lambda a: max(bits(a)) < 16,
    "layers[1:].bits != 4": lambda a: 4 not in bits(a)[1:],
    "layers[2].bits == 16": lambda a: bits(a)[2] == 16,
    "layers[-1].bits > 4": lambda a: bits(a)[2] > 4,
    "layers[0].precision != w4a16": lambda a: a.option[0] != 0,
    "layers[0:3].precision in {w8a16, 16}": lambda a: 0 not in a.option,
    "layers[1].precision == w3a16": lambda a: False,
    "layers[1].precision == bf16": lambda a: a.option[1] == 2,
    "device('T4:0').precision in {w8a16, w4a16}": lambda a: all(b != 2 for j, b in zip(a.device, a.option) if j == 0),
    'device("t4:0").bits <= 8': lambda a: all(b != 2 for j, b in zip(a.device, a.option) if j == 0),
    "device('A100-40:0').precision == 16": lambda a: True,
    "device('A100-40:0').layers >= 1": lambda a: False,
    "device('A100-40:0').layers <= 1": lambda a: True,
    "device('L4:1').layers <= 1": lambda a: a.device.count(1) <= 1,
    "device('L4:1').layers < 2": lambda a: a.device.count(1) < 2,
    "device('L4:1').layers > 1.5": lambda a: a.device.count(1) > 1,
    "layers[0].device == layers[1].device": lambda a: a.device[0] == a.device[1],
    "layers[0:3].device == last_layer.device": lambda a: len(set(a.device)) == 1,
    "first_layer.device != last_layer.device": lambda a: a.device[0] != a.device[2],
    "layers[1].device == 'L4:1'": lambda a: a.device[1] == 1,
    "first_layer.device in {'T4:0', 'A100-40:0'}": lambda a: a.device[0] == 0,
    "last_layer.device == 'A100-40:0'": lambda a: False,
    "last_layer.device != 'A100-40:0'": lambda a: True,
    "average_bits <= 8": lambda a: sum(w * b for w, b in zip((1, 1, 2), bits(a))) <= 32,
    "average_bits == 7": lambda a: sum(w * b for w, b in zip((1, 1, 2), bits(a))) == 28,
    "count(w4a16) >= 2": lambda a: a.option.count(0) >= 2,
    "count(16)==1": lambda a: a.option.count(2) == 1,
    "count(w8a8) >= 1": lambda a: False,
}


@pytest.mark.parametrize("text", MEANINGS)
def test_the_rows_of_a_rule_hold_exactly_when_the_rule_does(text: str) -> None:
    rows = parse_rule(text).rows(CONTEXT)
    assert rows
    assert {row.label for row in rows} == {text}
    for assignment in EVERY:
        assert all(row.holds(assignment) for row in rows) == MEANINGS[text](assignment)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "found the end, expected layers"),
        ("layer[0].bits >= 8", 1, "found 'layer', expected layers"),
        ("layers.bits >= 8", 7, r"expected '\[' after layers"),
        ("layers[0:2.bits >= 8", 11, r"expected '\]'"),
        ("layers[a].bits >= 8", 8, "expected a layer number"),
        ("layers[0.5].bits >= 8", 8, "whole layer number"),
        ("layers[0].bit >= 8", 11, "found 'bit', expected one of .bits .precision .device"),
        ("layers[0].bits => 8", 16, "unexpected '='"),
        ("layers[0].bits >=", 18, "found the end, expected a number"),
        ("layers[0].bits >= w4a16", 19, "expected a number"),
        ("layers[0].bits in {8}", 16, "found 'in'"),
        ("layers[0].precision >= w4a16", 21, "has no order"),
        ("layers[0].precision in w4a16", 24, r"expected '\{'"),
        ("layers[0].precision in {w4a16", 30, "found the end, expected ',' or"),
        ("layers[0].device == layers[1].bits", 21, "a .device to compare"),
        ("device('T4:0.layers <= 2", 8, "close the quote"),
        ("device('T4:0').device == 2", 16, "expected one of .bits .precision .layers"),
        ("count(w4a16) >= 1 and count(16) >= 1", 19, "one comparison a constraint"),
        ("device('T4:0').layers <= 2 $", 28, r"unexpected '\$'"),
    ],
)
def test_a_rule_that_does_not_parse_points_at_the_column(text: str, column: int, message: str) -> None:
    with pytest.raises(RuleError, match=message) as caught:
        parse_rule(text)
    assert caught.value.column == column


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("layers[3].bits >= 8", 1, "layer 3 is unknown; the model has layers 0 to 2"),
        ("layers[0:4].bits >= 8", 1, "layer 4 is unknown"),
        ("layers[-4].bits >= 8", 1, "layer -4 is unknown"),
        ("layers[2:2].bits >= 8", 1, "holds no layer"),
        ("device('V100:0').layers <= 2", 8, "device 'V100:0' is unknown; known are T4:0, L4:1, A100-40:0"),
        ("first_layer.device == 'V100:0'", 23, "device 'V100:0' is unknown"),
        ("layers[0].precision in {w8a16, w5a16}", 32, "precision 'w5a16' is unknown"),
        ("count(w5) >= 1", 7, "precision 'w5' is unknown"),
        ("average_bits < 5", 14, "use one of <= >= =="),
        ("count(w4a16) != 5", 14, "use one of <= >= == < >"),
        ("first_layer.device != layers[0].device", 23, "cannot be on another device than itself"),
        ("first_layer.device in last_layer.device", 23, r"expected '\{'"),
    ],
)
def test_a_rule_that_names_the_unknown_points_at_the_column(text: str, column: int, message: str) -> None:
    with pytest.raises(RuleError, match=message) as caught:
        parse_rule(text).rows(CONTEXT)
    assert caught.value.column == column


def test_equal_texts_make_equal_rules_and_rows_come_in_their_order() -> None:
    texts = ("count(w4a16) >= 1", "average_bits <= 8")
    assert parse_rules(texts) == parse_rules(iter(texts))
    assert [row.label for row in rule_rows(parse_rules(texts), CONTEXT)] == list(texts)


PARTS = replace(CONTEXT, options=("w4a16", "w8a16", "w4a16/w8a16", "w8a16/16"), option_bits=(4, 8, 6, 12))
PART_MEANINGS = {
    "layers[0].bits >= 8": {"w8a16", "w8a16/16"},
    "layers[0].bits <= 8": {"w4a16", "w8a16", "w4a16/w8a16"},
    "layers[0].bits != 4": {"w8a16", "w8a16/16"},
    "layers[0].precision == w8a16": {"w8a16"},
    "layers[0].precision in {w4a16, w8a16}": {"w4a16", "w8a16", "w4a16/w8a16"},
    "layers[0].precision == 'w4a16/w8a16'": {"w4a16/w8a16"},
    "layers[0].precision != w8a16": {"w4a16"},
    "layers[0].precision != 'w4a16/w8a16'": {"w4a16", "w8a16", "w8a16/16"},
    "layers[0].precision == w8a8/w4a16": set(),
    "layers[0].precision == 16/w4a16": set(),
    "layers[0].precision in {w4a16/w8a16, w8a16/16}": {"w4a16/w8a16", "w8a16/16"},
}


@pytest.mark.parametrize("text", PART_MEANINGS)
def test_a_layer_of_two_precisions_keeps_a_rule_that_both_of_its_parts_keep(text: str) -> None:
    rows = parse_rule(text).rows(PARTS)
    kept = {
        name for option, name in enumerate(PARTS.options) if all(row.holds(Assignment((0, 0, 0), (option, 0, 0))) for row in rows)
    }
    assert kept == PART_MEANINGS[text]


def test_an_average_counts_the_bits_of_both_parts() -> None:
    (row,) = parse_rule("average_bits <= 5").rows(PARTS)
    assert row.holds(Assignment((0, 0, 0), (2, 2, 0))) and not row.holds(Assignment((0, 0, 0), (2, 2, 2)))
