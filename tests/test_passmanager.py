"""The pass manager: pipelines as text, what passes require and provide, and what they leave out."""

from dataclasses import fields, is_dataclass

import pytest

from llmpq.errors import InputError
from llmpq.passmanager import LOWERING, PASSES, PLANNING, Pass, format_pipeline, load_pass, parse_pipeline
from llmpq.program import Program

PROVIDABLE = {field.name for field in fields(Program)}


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_pass_keeps_the_contract(name: str) -> None:
    cls = load_pass(name)
    assert cls.name == name
    assert cls.__module__ == f"llmpq.passes.{name.replace('-', '_')}"
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert isinstance(cls(), Pass)
    assert set(cls.requires) | set(cls.provides) <= PROVIDABLE
    assert cls.provides


@pytest.mark.parametrize(
    "text", [PLANNING, LOWERING, "assign-joint{gap=0.0001,time_limit=5.0}", "estimate-sensitivity{indicator=prior}"]
)
def test_pipelines_round_trip_through_text(text: str) -> None:
    assert format_pipeline(parse_pipeline(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("assign-jont", "did you mean 'assign-joint'"),
        ("assign-joint{gapp=1}", "option 'gapp=1' is unknown"),
        ("assign-joint{gap=small}", "expected float"),
        ("", "empty"),
        ("derive-costs;assign-joint", "column"),
    ],
)
def test_a_bad_pipeline_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_pipeline(text)
