"""Pipelines from options: defaults, the user's own, extra passes, and where to stop."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from llmpq.errors import InputError
from llmpq.options import Options
from llmpq.passmanager import LOWERING, PLANNING, format_pipeline, parse_pipeline
from llmpq.pipelines import pipelines
from llmpq.program import Program

SPEC = "derive-costs,estimate-sensitivity{indicator=prior},assign-joint{gap=0.0001}"


@dataclass(frozen=True, slots=True)
class OnTheGraph:
    name: ClassVar[str] = "on-the-graph"
    requires: ClassVar[tuple[str, ...]] = ("graph_module",)
    provides: ClassVar[tuple[str, ...]] = ("graph_module",)

    def apply(self, program: Program) -> Program:
        return program


@dataclass(frozen=True, slots=True)
class OnTheStages:
    name: ClassVar[str] = "on-the-stages"
    requires: ClassVar[tuple[str, ...]] = ("stages",)
    provides: ClassVar[tuple[str, ...]] = ("stages",)

    def apply(self, program: Program) -> Program:
        return program


def test_by_default_both_are_llmpqs_own() -> None:
    found = pipelines(Options())
    assert format_pipeline(found.planning) == format_pipeline(found.asked_for) == PLANNING
    assert format_pipeline(found.lowering) == LOWERING


def test_assign_and_indicator_are_in_the_default() -> None:
    found = pipelines(Options(assign="assign-even", indicator="prior"))
    assert format_pipeline(found.planning) == "derive-costs,estimate-sensitivity{indicator=prior},assign-even"


def test_a_pipeline_of_the_users_is_cut_behind_the_plan() -> None:
    found = pipelines(Options(pipeline=f"{SPEC},annotate-graph,split-by-stage"))
    assert format_pipeline(found.planning) == SPEC
    assert format_pipeline(found.lowering) == "annotate-graph,split-by-stage"
    assert found.asked_for == (*found.planning, *found.lowering)


def test_a_pipeline_that_ends_with_the_plan_is_lowered_as_always() -> None:
    found = pipelines(Options(pipeline=SPEC))
    assert format_pipeline(found.lowering) == LOWERING
    assert found.asked_for == found.planning


def test_extra_passes_stand_where_what_they_require_is() -> None:
    found = pipelines(Options(passes=(OnTheStages(), OnTheGraph(), "eliminate-dead-code")))
    assert found.lowering == (OnTheGraph(), *parse_pipeline(f"eliminate-dead-code,{LOWERING}"), OnTheStages())


def test_a_pipeline_without_a_plan_names_the_remedy() -> None:
    with pytest.raises(InputError, match=r"--passes 'annotate-graph' makes no plan; .* by --extra-pass"):
        pipelines(Options(pipeline="annotate-graph"))
    with pytest.raises(InputError, match="--assign 'derive-costs' makes no plan; choose one of assign-joint"):
        pipelines(Options(assign="derive-costs"))


def test_a_pipeline_excludes_the_options_that_it_contains() -> None:
    with pytest.raises(InputError, match="--passes excludes --assign and --indicator"):
        Options(pipeline=SPEC, assign="assign-even")
    with pytest.raises(InputError, match="--passes excludes --assign and --indicator"):
        Options(pipeline=SPEC, indicator="prior")


@pytest.mark.parametrize("name", ["on-the-graph", f"{__name__}:OnTheGraph"])
def test_all_passes_up_to_one_are_found_by_either_of_its_names(name: str) -> None:
    found = pipelines(Options(passes=(OnTheGraph(),)))
    assert found.until(name) == (*found.planning, OnTheGraph())
    assert found.until("derive-costs") == found.planning[:1]


def test_a_pass_that_is_not_in_the_pipeline_is_told_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"pass 'split-by-stages' is not in the pipeline; .*did you mean 'split-by-stage'\?"):
        pipelines(Options()).until("split-by-stages")
