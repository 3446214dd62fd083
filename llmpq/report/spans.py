"""Spans: when each stage computes and sends, for the Gantt charts of a plan."""

from collections.abc import Sequence

from llmpq.plan import Plan
from llmpq.planning.stage_seconds import StageSeconds
from llmpq.runtime.schedule import schedule
from llmpq.runtime.simulate import Span, Times, simulated_spans
from llmpq.runtime.timeline import Action
from llmpq.simulation.pipeline import Pipeline
from llmpq.simulation.scheduler import StepShape
from llmpq.workload import Serving

ROUNDS = 3  # of decode: the first fills the pipeline, the others repeat
MOST = 48  # micro-batches of prefill that are drawn, and spans of a stage when decoding


def prefill_spans(plan: Plan, seconds: StageSeconds) -> tuple[Span, ...]:
    """Of the first MOST micro-batches of a batch's prefill."""
    count = min(MOST, prefill_micro_batches(plan))
    rows = [[Action("P", index) for index in range(count)]] * len(plan.stages)
    return _simulated(rows, 1, seconds)


def decode_spans(plan: Plan, seconds: StageSeconds) -> tuple[Span, ...]:
    """Of ROUNDS tokens of every decode micro-batch, or of that many trips of every batch in flight."""
    if isinstance(plan.workload, Serving):
        return _serving_spans(plan, seconds)
    micro_batches = -(-plan.batch.batch_size // plan.pipeline.decode_micro_batch)
    drawn = schedule(len(plan.stages), 0, micro_batches, ROUNDS + 1)
    rows = [drawn.actions(stage)[:MOST] for stage in range(len(plan.stages))]
    return _simulated(rows, 1, seconds)


def prefill_micro_batches(plan: Plan) -> int:
    return -(-plan.batch.batch_size // plan.pipeline.prefill_micro_batch)


def _simulated(rows: Sequence[Sequence[Action]], per_decode: int, seconds: StageSeconds) -> tuple[Span, ...]:
    """The runtime's own simulation; a link's time occupies the stage that sends, as the planner charges it."""
    compute = Times(seconds.prefill or seconds.decode, seconds.decode)
    send = Times(seconds.prefill_link or seconds.decode_link, seconds.decode_link)
    return simulated_spans(rows, per_decode, compute, send)


def _serving_spans(plan: Plan, seconds: StageSeconds) -> tuple[Span, ...]:
    """Every batch in flight goes in again as soon as its tokens are back, always with the mean step, whose times are known."""
    stages, flights, step = len(plan.stages), plan.load.in_flight, StepShape(0, 0, plan.pipeline.decode_micro_batch, 0, 0)
    clocks = Pipeline(
        stages,
        lambda stage, _: seconds.decode[stage],
        lambda stage, _: seconds.decode_link[stage],
        False,
        keep_spans=stages * MOST,
    )
    back = [0.0] * flights
    for _ in range(ROUNDS):
        for batch in range(flights):
            back[batch] = clocks.run(step, back[batch])
    return tuple(
        Span(span.stage, f"S{span.step % flights}", span.start_s, span.end_s, span.end_s + seconds.decode_link[span.stage])
        for span in clocks.spans
    )
