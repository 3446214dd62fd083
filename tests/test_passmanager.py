"""The pass manager: pipelines as text, what passes require and provide, and what they leave out."""

from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq import passmanager
from llmpq.errors import InputError, PassError, VerifyError
from llmpq.passmanager import (
    LOWERING,
    PASSES,
    PLANNING,
    Pass,
    Verifier,
    format_pipeline,
    load_pass,
    parse_pipeline,
    run_passes,
)
from llmpq.program import Program
from tests import values

LOWERING_PASSES = ("graph_module", "stages")
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
    assert issubclass(cls, Verifier) or not set(cls.provides) & set(LOWERING_PASSES), "a lowering pass checks its own work"
    assert all(type(field.default) in (bool, int, float, str) for field in fields(cls))


@dataclass(frozen=True, slots=True)
class Noting:
    """Adds a notice; one of the user's passes."""

    name: ClassVar[str] = "noting"
    requires: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ("notices",)

    text: str = "seen"
    times: int = 1
    loud: bool = False
    weight: float = 1.0

    def apply(self, program: Program) -> Program:
        return replace(program, notices=program.notices + (self.text,) * self.times)

    def verify(self, program: Program) -> tuple[str, ...]:
        return ("it was noted loudly",) if self.loud else ()


@dataclass(frozen=True, slots=True)
class Idle(Noting):
    """Promises a plan and makes none."""

    name: ClassVar[str] = "idle"
    provides: ClassVar[tuple[str, ...]] = ("plan",)


NOTINGS = st.builds(Noting, st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False))


@given(st.lists(NOTINGS, min_size=1, max_size=3).map(tuple))
def test_options_of_every_type_round_trip_through_text(passes: tuple[Pass, ...]) -> None:
    assert parse_pipeline(format_pipeline(passes)) == passes
    assert format_pipeline(parse_pipeline(format_pipeline(passes))) == format_pipeline(passes)


def test_a_pass_of_the_users_runs_like_any_other() -> None:
    (item,) = parse_pipeline(f'{__name__}:Noting{{text="a, b",times=2}}')
    seen: list[tuple[str, int]] = []
    done = run_passes(
        values.program(),
        (item, Noting()),
        observe=lambda item, program: seen.append((f"after {item.name}", len(program.notices))),
        before=lambda item, program: seen.append((f"before {item.name}", len(program.notices))),
    )
    assert done.notices == ("a, b", "a, b", "seen")
    assert seen == [("before noting", 0), ("after noting", 2), ("before noting", 2), ("after noting", 3)]


def test_a_pass_of_an_installed_package_goes_by_its_entry_points_name(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("jot", f"{__name__}:Noting", passmanager.ENTRY_POINTS)
    monkeypatch.setattr(passmanager, "entry_points", lambda group: [entry] if group == "llmpq.passes" else [])
    assert parse_pipeline("jot{times=3}") == (Noting(times=3),)
    assert format_pipeline(parse_pipeline("jot{times=3}")) == f"{__name__}:Noting{{times=3}}"
    with pytest.raises(InputError, match=r"pass 'jott' is unknown; .*did you mean 'jot'\?"):
        parse_pipeline("jott")


def test_what_a_pass_finds_wrong_with_its_own_work_ends_the_run() -> None:
    with pytest.raises(VerifyError, match="after pass noting: it was noted loudly"):
        run_passes(values.program(), (Noting(loud=True),))


def test_a_promise_that_is_not_kept_and_a_need_that_is_not_met_are_told_with_what_ran_before() -> None:
    with pytest.raises(PassError, match=r"pass idle promised plan and did not provide it \(ran before: noting\)"):
        run_passes(values.program(), (Noting(), Idle()))
    with pytest.raises(
        PassError, match=r"pass annotate-graph requires plan, graph_module, which is not there yet \(ran: noting\)"
    ):
        run_passes(values.program(), (Noting(), *parse_pipeline("annotate-graph")))


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
        ("no_such_module:Pass", "module 'no_such_module' cannot be imported .*add its folder to PYTHONPATH"),
        (f"{__name__}:Missing", "Missing is not in "),
        (f"{__name__}:PROVIDABLE", "PROVIDABLE lacks name, requires, provides, apply; expected a frozen dataclass"),
        (f"{__name__}:Noting{{loud=yes}}", "option loud is 'yes'; expected bool"),
    ],
)
def test_a_bad_pipeline_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_pipeline(text)
