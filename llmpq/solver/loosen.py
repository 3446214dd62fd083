"""Loosening: the weaker forms of a rule that compares with a number, the nearest first."""

from math import ceil, floor

from llmpq.solver.rule_syntax import AverageBits, Layers
from llmpq.solver.rule_syntax import Device as DeviceSubject
from llmpq.solver.rules import Rule, RuleContext, parse_rule

AVERAGE_STEP = 0.25  # bits


def looser(rule: Rule, context: RuleContext) -> tuple[Rule, ...]:
    """Weaker rules of the same subject, each implied by the one before it; empty where only dropping the rule is left.

    ">= 8" of bits becomes ">= 4" where an option of 4 bits and one of less is there; "layers <= 2" becomes "layers <= 3".
    """
    comparison = rule.comparison
    if not isinstance(comparison.operand, float) or comparison.operator in ("==", "!=", "in"):
        return ()
    at_least = comparison.operator in (">=", ">")
    numbers = _numbers(rule, comparison.operand, context, at_least)
    head = rule.text[: comparison.operator_column - 1]
    return tuple(parse_rule(f"{head}{'>=' if at_least else '<='} {number:g}") for number in numbers)


def _numbers(rule: Rule, limit: float, context: RuleContext, at_least: bool) -> list[float]:
    """Limits beyond this one that can still be broken, nearest first."""
    subject = rule.comparison.subject
    if isinstance(subject, AverageBits):
        return _steps(limit, min(context.option_bits), max(context.option_bits), at_least)
    if isinstance(subject, Layers) or (isinstance(subject, DeviceSubject) and subject.attribute == "bits"):
        bits = sorted(set(context.option_bits), reverse=at_least)
        inside = bits[:-1]  # the weakest says nothing
        strict = rule.comparison.operator in ("<", ">")
        return [value for value in inside if (value < limit if at_least else value > limit) or (strict and value == limit)]
    start = {">=": ceil(limit) - 1, ">": floor(limit), "<=": floor(limit) + 1, "<": ceil(limit)}[rule.comparison.operator]
    return [float(n) for n in (range(start, 0, -1) if at_least else range(start, context.num_layers))]


def _steps(limit: float, least: float, most: float, at_least: bool) -> list[float]:
    """Multiples of the step between the limit and the end of the range, ends not included."""
    if at_least:
        first, last = ceil(limit / AVERAGE_STEP) - 1, floor(least / AVERAGE_STEP)
        return [n * AVERAGE_STEP for n in range(first, last, -1) if n * AVERAGE_STEP < most]
    first, last = floor(limit / AVERAGE_STEP) + 1, ceil(most / AVERAGE_STEP)
    return [n * AVERAGE_STEP for n in range(first, last) if n * AVERAGE_STEP > least]
