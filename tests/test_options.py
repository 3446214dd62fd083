"""Options: the quality target they mean, and values that mean nothing."""

from math import inf, log, log1p, nan
from typing import Any

import pytest

from llmpq.errors import InputError
from llmpq.options import Options, PlanningOptions
from llmpq.program import Target


def test_the_default_is_two_percent_of_perplexity_and_not_explicit() -> None:
    target = Options().target
    assert target == Target() and not target.explicit and target.theta is None
    assert target.budget == pytest.approx(log(1.02), rel=1e-12)


def test_the_three_quality_options_mean_a_budget_a_budget_and_a_price() -> None:
    assert Options(max_ppl_increase=0.1).target == Target(budget=log1p(0.1), explicit=True)
    assert Options(max_ppl_increase=0.0).target == Target(budget=0.0, explicit=True)
    assert Options(sensitivity_budget=0.3).target == Target(budget=0.3, explicit=True)
    assert Options(theta=2.0).target == Target(budget=None, theta=2.0, explicit=True)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_ppl_increase": 0.1, "theta": 1.0}, "--max-ppl-increase and --theta"),
        ({"sensitivity_budget": 0.0, "theta": 0.0}, "--sensitivity-budget and --theta"),
        (
            {"max_ppl_increase": 0.1, "sensitivity_budget": 1.0, "theta": 1.0},
            "--max-ppl-increase and --sensitivity-budget and --theta",
        ),
    ],
)
def test_quality_options_exclude_each_other(given: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named} exclude each other; give one quality option$"):
        _ = Options(**given).target  # type: ignore[arg-type]  # names vary


@pytest.mark.parametrize("value", [-0.1, nan, inf, -inf])
@pytest.mark.parametrize("name", ["max_ppl_increase", "sensitivity_budget", "theta", "gap", "time_limit_s"])
def test_figures_that_are_negative_or_endless_are_refused(name: str, value: float) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=rf"--[a-z-]+ is {value}; it must be a finite number"):
        _ = Options(**given).target


def test_a_search_needs_some_time_and_may_have_no_gap() -> None:
    with pytest.raises(InputError, match=r"--time-limit is 0.0; it must be a finite number of seconds above 0"):
        Options(time_limit_s=0.0)
    assert Options(gap=0.0, time_limit_s=0.1).gap == 0.0


def test_the_keyword_arguments_are_the_options() -> None:
    assert set(PlanningOptions.__annotations__) == set(Options.__dataclass_fields__)
