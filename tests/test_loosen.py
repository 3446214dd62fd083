"""Weaker forms of rules: implied by the rule and by each other, nearest first."""

from itertools import pairwise

import pytest

from llmpq.solver.loosen import looser
from llmpq.solver.rules import parse_rule
from tests.test_rules import CONTEXT, EVERY

TEXTS = (
    "layers[0:2].bits >= 16",
    "layers[0].bits > 8",
    "layers[-1].bits <= 4",
    "device('T4:0').bits < 8",
    "device('L4:1').layers <= 0",
    "device('L4:1').layers >= 3",
    "count(w4a16) >= 3",
    "count(16) < 1",
    "average_bits <= 5",
    "average_bits >= 15",
)


@pytest.mark.parametrize("text", TEXTS)
def test_every_form_is_implied_by_the_one_before_and_still_says_something(text: str) -> None:
    rule = parse_rule(text)
    forms = looser(rule, CONTEXT)
    assert forms
    kept = [
        {number for number, a in enumerate(EVERY) if all(row.holds(a) for row in form.rows(CONTEXT))} for form in (rule, *forms)
    ]
    for stronger, weaker in pairwise(kept):
        assert stronger <= weaker
    assert len(kept[-1]) < len(EVERY)


@pytest.mark.parametrize(
    "text", ["layers[0].bits == 8", "layers[0].precision in {w4a16}", "layers[0].device == layers[1].device"]
)
def test_what_compares_with_no_number_has_no_weaker_form(text: str) -> None:
    assert looser(parse_rule(text), CONTEXT) == ()


def test_the_forms_are_written_as_the_user_would() -> None:
    forms = looser(parse_rule("device('L4:1').layers >= 3"), CONTEXT)
    assert [form.text for form in forms] == ["device('L4:1').layers >= 2", "device('L4:1').layers >= 1"]
