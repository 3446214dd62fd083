"""Quality: what was asked for, what is predicted, and what was measured after quantizing."""

from math import expm1

from llmpq.plan import Plan
from llmpq.quality_check import QualityCheck, format_estimate
from llmpq.report.markup import Markup, section, table, tag


def quality_section(plan: Plan, check: QualityCheck | None) -> Markup:
    """Nats per token, with what they mean for the perplexity."""
    return section("quality", "Quality", tag("p", _predicted(plan)), *_measured(check))


def _predicted(plan: Plan) -> str:
    quality = plan.quality
    asked = "No limit was asked for" if quality.budget is None else f"At most {_nats(quality.budget)} were allowed to this plan"
    return f"{asked}; {_nats(quality.sensitivity)} are predicted by {quality.provenance}."


def _nats(increase: float) -> str:
    return f"+{increase:.4f} nats per token ({expm1(increase):+.2%} perplexity)"


def _measured(check: QualityCheck | None) -> list[Markup]:
    if check is None:
        return [tag("p", "Not measured: the weights have not been quantized yet.", class_="note")]
    if check.skipped:
        return [tag("p", f"Not measured: {check.skipped}.", class_="note")]
    rows = [
        (str(number), f"+{check.asked:.4f}", f"+{each.budget:.4f}", f"+{each.predicted:.4f}", format_estimate(each.got))
        for number, each in enumerate(check.rounds, 1)
    ]
    header = ("round", "asked", "budget", "predicted", "measured")
    verdict = "The target holds" if check.held else "The target is not met"
    told = f"{verdict}, measured on {check.tuned_on}."
    if check.report is not None:
        told += f" On {check.reported_on}, which nothing was chosen by: {format_estimate(check.report)} nats per token."
    return [tag("p", told), table("Increase of the loss, nats per token", header, rows)]
