"""Pipelines as text: any names and values there and back, and where it does not parse, the column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.pipeline_text import PassSpec, format_specs, parse_specs

NAMES = st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+){0,3}", fullmatch=True) | st.from_regex(
    r"[A-Za-z_]\w{0,5}(\.[A-Za-z_]\w{0,5}){0,2}:[A-Za-z_]\w{0,8}", fullmatch=True
)
KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text() | st.floats(allow_nan=False).map(str) | st.booleans().map(str)
SPECS = st.builds(PassSpec, NAMES, st.lists(st.tuples(KEYS, VALUES), max_size=4, unique_by=lambda pair: pair[0]).map(tuple))
PIPELINES = st.lists(SPECS, min_size=1, max_size=5).map(tuple)


@given(PIPELINES)
def test_what_is_formatted_parses_to_the_same(specs: tuple[PassSpec, ...]) -> None:
    assert parse_specs(format_specs(specs)) == specs


@given(PIPELINES)
def test_spaces_between_tokens_mean_nothing_and_formatting_is_canonical(specs: tuple[PassSpec, ...]) -> None:
    plain = tuple(PassSpec(spec.name, tuple((key, "1e-4") for key, _ in spec.options)) for spec in specs)
    text = format_specs(plain)
    spaced = "".join(f" {c}\n " if c in "{},=" else c for c in text)
    assert format_specs(parse_specs(spaced)) == text


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("a-b", (PassSpec("a-b"),)),
        ("a{}", (PassSpec("a"),)),
        ("a{gap=1e-4, time-limit=5}", (PassSpec("a", (("gap", "1e-4"), ("time_limit", "5"))),)),
        ('my.mod:Pass{text="a, \\"b\\" = {c}"},d', (PassSpec("my.mod:Pass", (("text", 'a, "b" = {c}'),)), PassSpec("d"))),
    ],
)
def test_names_options_and_quotes_are_read(text: str, specs: tuple[PassSpec, ...]) -> None:
    assert parse_specs(text) == specs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b", r"column 2: found ';', expected a comma or the end"),
        ("a,", r"column 3: found the end, expected a pass name such as assign-joint, or module:Class"),
        ("a{gap}", r"column 6: found '\}', expected an equals sign behind option gap"),
        ("a{gap=}", r"column 7: found '\}', expected a value of option gap"),
        ("a{=1}", r"column 3: found '=', expected an option name"),
        ("a{gap=1", r"column 8: found the end, expected a comma or a closing brace"),
        ('a{gap="1', r"column 7: found '\"', expected a closing quote"),
    ],
)
def test_what_does_not_parse_is_told_with_its_column(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_specs(text)
