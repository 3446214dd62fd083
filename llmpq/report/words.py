"""Words: a plan in sentences, what limits it first."""

from llmpq.plan import Plan
from llmpq.planning.stage_seconds import StageSeconds
from llmpq.printing import format_optimality, format_phases, format_ranges, format_rate_band, format_with_band
from llmpq.report.markup import Markup, bullets, section, tag
from llmpq.units import format_bytes, format_seconds
from llmpq.workload import Batch, Serving


def summary_section(plan: Plan, seconds: StageSeconds | None) -> Markup:
    """Tokens per second in large, then the sentences."""
    rate = tag("strong", f"{plan.tokens_per_s:.4g} tokens/s")
    speed = tag("p", rate, f"{format_rate_band(plan)} predicted; {_speed(plan)}.", class_="headline")
    limits = [] if seconds is None else [*_limits(plan, seconds)]
    return section("summary", "The plan in words", speed, bullets([*_placement(plan), *limits, _tightest(plan), *_trust(plan)]))


def _speed(plan: Plan) -> str:
    prediction, load = plan.prediction, plan.prediction.load
    if load is None:
        return format_phases(plan)
    tpot = format_with_band(load.tpot_s, prediction.bands.decode_s if prediction.bands else None)
    waits = f"{tpot} per token, first token within {format_seconds(load.ttft_s)} on average"
    return f"at most {load.running} sequences at once, {waits}"


def _placement(plan: Plan) -> list[str]:
    """A sentence per stage, and one on the devices that are left out."""
    last = len(plan.stages) - 1
    lines = []
    for index, stage in enumerate(plan.stages):
        ends = [name for name, here in (("embedding", index == 0), ("head", index == last)) if here]
        runs = ", ".join(" at ".join(part.split(" ")) for part in format_ranges(stage.options, stage.first_layer).split(", "))
        lines.append(f"{stage.device} runs layers {runs}{', with the ' if ends else ''}{' and the '.join(ends)}.")
    if plan.ranks > 1:
        lines.append(f"Every stage is a tensor-parallel group: each of its {plan.ranks} devices has a part of every layer.")
    return [*lines, f"Not used: {', '.join(plan.idle)}."] if plan.idle else lines


def _limits(plan: Plan, seconds: StageSeconds) -> list[str]:
    """The slowest stage, and whether the pipeline waits for it or for the round trip of a token."""
    phase, what, both = _dominant(plan, seconds)
    took, trip = max(both), sum(both)
    name, batches = plan.stages[both.index(took)].device, _in_flight(plan)
    if len(plan.stages) == 1:
        return [f"Everything runs on {name}: {format_seconds(took)} for {what}."]
    lines = [
        f"The slowest stage of {phase} is {name}: {format_seconds(took)} for {what}, of {format_seconds(trip)} over all stages."
    ]
    if phase != "decoding" or batches * took >= trip:
        return [*lines, f"It is the bottleneck: batches take turns, and {name} hardly idles."]
    few = "1 micro-batch" if batches == 1 else f"{batches} micro-batches"
    lines.append(
        f"The round trip of a token is the bottleneck: {few} cannot fill {len(plan.stages)} stages, "
        f"and {name} too idles {1 - batches * took / trip:.0%} of the time."
    )
    return [*lines, f"Links take {sum(seconds.decode_link) / trip:.1%} of the round trip."]


def _dominant(plan: Plan, seconds: StageSeconds) -> tuple[str, str, list[float]]:
    """The phase that there is most of: its name, what a stage runs of it at once, and seconds of each stage with its link."""
    if generates(plan):
        what = "a step" if isinstance(plan.workload, Serving) else "a micro-batch"
        return "decoding", what, [a + b for a, b in zip(seconds.decode, seconds.decode_link)]
    return "prefill", "a micro-batch", [a + b for a, b in zip(seconds.prefill, seconds.prefill_link)]


def generates(plan: Plan) -> bool:
    """Whether anything is decoded after the first token."""
    return plan.workload.gen_len > 1


def _in_flight(plan: Plan) -> int:
    if isinstance(plan.workload, Batch):
        return -(-plan.batch.batch_size // plan.pipeline.decode_micro_batch)
    return plan.load.in_flight


def _tightest(plan: Plan) -> str:
    tight = min(plan.prediction.memory, key=lambda memory: memory.capacity - memory.total)
    free = tight.capacity - tight.total
    return f"Memory is tightest on {tight.device}: {format_bytes(free)} of {format_bytes(tight.capacity)} stay free."


def _trust(plan: Plan) -> list[str]:
    rules = [f"Rules that hold: {'; '.join(plan.constraints)}."] if plan.constraints else []
    brackets = " In brackets: where nine of ten measurements are expected." if plan.prediction.bands else ""
    return [
        *rules,
        f"The times rest on: {plan.prediction.provenance}.{brackets}",
        f"The search ended with {format_optimality(plan)}.",
    ]
