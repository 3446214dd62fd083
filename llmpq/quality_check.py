"""QualityCheck: the quality target against what was measured after quantizing, round by round."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from llmpq.errors import InfeasibleError, QualityError, TimeLimitError
from llmpq.evaluation import Estimate
from llmpq.plan import Plan

ROUNDS = 4
CONFIDENCE = 1.645  # standard errors: the increase is below the upper end with a probability of 95 %
TIGHTER = 0.97  # of what proportion asks for, since the increase is not quite proportional


@dataclass(frozen=True, slots=True)
class Round:
    """One plan: the budget it was made for, the increase predicted of it and the one measured, nats per token."""

    budget: float
    predicted: float
    got: Estimate

    @property
    def upper(self) -> float:
        """The increase is at most this with a probability of 95 %."""
        return self.got.mean + CONFIDENCE * (self.got.error or 0.0)


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """asked: the target, nats per token. rounds: on the text `tuned_on`, empty where nothing was measured, and why.

    report: the increase on `reported_on`, which is looked at once, after the last round. held: whether the upper end of the
    last round is within the target.
    """

    asked: float
    rounds: tuple[Round, ...] = ()
    held: bool = False
    tuned_on: str = ""
    report: Estimate | None = None
    reported_on: str = ""
    skipped: str = ""


def meet_target(
    asked: float,
    plan: Plan,
    carry_out: Callable[[Plan], Estimate],
    plan_again: Callable[[float], Plan],
    rounds: int = ROUNDS,
) -> QualityCheck:
    """Carry the plan out and measure; while the target is broken, plan again with a tighter budget, `rounds` times in all.

    carry_out: quantizes and returns the increase of the loss on the tuning text. plan_again: the plan for a budget, from the
    same sensitivities; no plan for a tighter budget ends the rounds. The plan that was carried out last is the result, held or
    not: where none holds, the one that came nearest is carried out again.
    """
    done: list[tuple[Plan, Round]] = []
    budget = asked
    while True:
        done.append((plan, Round(budget, plan.quality.sensitivity, carry_out(plan))))
        last = done[-1][1]
        if last.upper <= asked or len(done) == rounds or last.predicted <= 0:
            break
        budget = min(last.predicted, budget) * asked / last.upper * TIGHTER
        try:
            plan = plan_again(budget)
        except (InfeasibleError, TimeLimitError):
            break
        if plan.options == done[-1][0].options:
            break
    nearest = min(done, key=lambda each: each[1].upper)
    if done[-1][1].upper > asked and nearest is not done[-1]:
        done.append((nearest[0], replace(nearest[1], got=carry_out(nearest[0]))))
    return QualityCheck(asked, tuple(each for _, each in done), held=done[-1][1].upper <= asked)


def require_held(check: QualityCheck, where: str) -> None:
    """Raises QualityError when the target was measured and is broken; `where` holds the plan that came nearest."""
    if check.skipped or check.held:
        return
    last = check.rounds[-1]
    raise QualityError(
        f"the quality target of +{check.asked:.4f} nats per token was not met in {len(check.rounds)} "
        f"round{'s' * (len(check.rounds) != 1)}: the best plan measured {format_estimate(last.got)} on {check.tuned_on} "
        f"(at most +{last.upper:.4f} with 95 % confidence, predicted +{last.predicted:.4f}); {where} holds that plan. "
        "Ask for less, allow more bits or memory, or give --tune a longer text"
    )


def format_estimate(estimate: Estimate) -> str:
    return f"{estimate.mean:+.4f}" + ("" if estimate.error is None else f" ± {estimate.error:.4f}")


def format_check(check: QualityCheck) -> list[str]:
    """A line per round, and what the report text says."""
    if check.skipped:
        return [f"not measured: {check.skipped}"]
    lines = [
        f"round {number}: asked +{check.asked:.4f}, budget +{each.budget:.4f}, predicted +{each.predicted:.4f}, "
        f"got {format_estimate(each.got)} nats per token on {check.tuned_on}"
        for number, each in enumerate(check.rounds, 1)
    ]
    if check.report is not None:
        lines.append(f"report: {format_estimate(check.report)} on {check.reported_on}")
    return lines if check.held else [*lines, "the target is not met"]
