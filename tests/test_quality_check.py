"""The quality loop's arithmetic, on plans whose real increase is known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InfeasibleError, QualityError
from llmpq.evaluation import Estimate
from llmpq.plan import Plan, Quality
from llmpq.quality_check import ROUNDS, QualityCheck, Round, format_check, meet_target, require_held
from llmpq.serialize import dumps, loads
from tests.tiny_checkpoint import plan


def planned(budget: float) -> Plan:
    """A plan that uses nearly all of its budget; its options tell plans apart."""
    layers = max(0, min(1000, int(budget * 1e4 + 1e-9)))
    options = ("w4a16",) * layers + ("16",) * (1000 - layers)
    return replace(plan(options, cuts=()), quality=Quality(layers * 1e-4, budget, "test"))


def real(factor: float, error: float = 0.0) -> Callable[[Plan], Estimate]:
    return lambda each: Estimate(each.quality.sensitivity * factor, error)


def test_a_plan_that_holds_is_measured_once() -> None:
    check = meet_target(0.02, planned(0.02), real(0.9), planned)
    assert check.held and len(check.rounds) == 1
    assert check.rounds == (Round(0.02, 0.02, Estimate(0.02 * 0.9, 0.0)),)


@given(st.floats(1.01, 5.0), st.floats(0.005, 0.09))
def test_an_increase_in_proportion_to_the_prediction_is_met_in_a_few_rounds(factor: float, asked: float) -> None:
    check = meet_target(asked, planned(asked), real(factor), planned)
    assert check.held and len(check.rounds) <= 3
    assert all(late.budget < early.budget for early, late in zip(check.rounds, check.rounds[1:]))
    assert check.rounds[-1].got.mean <= asked


def test_half_a_budget_is_not_given_away_when_it_is_tightened() -> None:
    check = meet_target(0.02, planned(0.02), real(1.5), planned)
    assert check.rounds[-1].got.mean > 0.9 * 0.02


def test_a_standard_error_counts_against_the_plan() -> None:
    check = meet_target(0.02, planned(0.02), real(0.95, error=0.002), planned)
    assert len(check.rounds) == 2 and check.held
    assert check.rounds[0].got.mean < 0.02 < check.rounds[0].upper


def test_after_the_last_round_the_nearest_plan_is_carried_out_again() -> None:
    carried: list[Plan] = []
    increases = iter([0.05, 0.03, 0.06, 0.07, 0.03])

    def carry_out(each: Plan) -> Estimate:
        carried.append(each)
        return Estimate(next(increases), 0.0)

    check = meet_target(0.02, planned(0.02), carry_out, planned)
    assert not check.held and len(check.rounds) == ROUNDS + 1
    assert carried[-1] == carried[1] and check.rounds[-1].got.mean == 0.03


def test_no_plan_for_a_tighter_budget_ends_the_rounds() -> None:
    def infeasible(budget: float) -> Plan:
        raise InfeasibleError((f"{budget} is too little",))

    check = meet_target(0.02, planned(0.02), real(2.0), infeasible)
    assert not check.held and len(check.rounds) == 1


def test_the_same_plan_again_ends_the_rounds() -> None:
    check = meet_target(0.02, planned(0.02), real(2.0), lambda budget: planned(0.02))
    assert not check.held and len(check.rounds) == 1


def test_a_broken_target_says_what_was_reached_and_where() -> None:
    check = replace(meet_target(0.02, planned(0.02), real(2.0), lambda budget: planned(0.02)), tuned_on="tune")
    with pytest.raises(QualityError) as raised:
        require_held(check, "out")
    said = str(raised.value)
    assert "target of +0.0200 nats per token was not met in 1 round: the best plan measured +0.0400 ± 0.0000 on tune" in said
    assert "out holds that plan" in said and raised.value.exit_code == 1
    require_held(QualityCheck(0.02, skipped="no room"), "out")
    require_held(meet_target(0.02, planned(0.02), real(0.5), planned), "out")


def test_every_round_is_printed_and_read_back() -> None:
    check = meet_target(0.02, planned(0.02), real(1.5), planned)
    check = replace(check, tuned_on="tune", report=Estimate(0.019, 0.001), reported_on="report")
    lines = format_check(check)
    assert lines[0].startswith("round 1: asked +0.0200, budget +0.0200, predicted +0.0200, got +0.0300 ± 0.0000 nats per token")
    assert lines[-1] == "report: +0.0190 ± 0.0010 on report"
    assert loads(QualityCheck, dumps(check)) == check
    assert format_check(QualityCheck(0.02, skipped="no room")) == ["not measured: no room"]
