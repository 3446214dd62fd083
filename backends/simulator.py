"""Simulator: a plan in simulated time: our engine's schedule for a batch, vLLM's scheduling policy for requests; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from llmpq.costs.profile import Profile
from llmpq.errors import BackendError
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.planning.stage_seconds import StageSeconds, stage_seconds
from llmpq.runtime.schedule import Schedule, plan_schedule
from llmpq.runtime.simulate import Span, Times, simulated_spans
from llmpq.simulation.planned import simulate_plan
from llmpq.simulation.requests import Request
from llmpq.simulation.simulator import Run
from llmpq.workload import Batch


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A batch in simulated time. prefill_s: of prefill, in all rounds; busy: share of the time that each stage computes.

    spans: every action of every stage, for a Gantt chart
    """

    seconds: float
    prefill_s: float
    tokens_per_s: float
    busy: tuple[float, ...]
    spans: tuple[Span, ...]


class SimulatorBackend:
    """Replays a plan by the planner's costs of its stages and links, which occupy the stage that sends.

    profile: what the plan rests on, where its times were measured.
    """

    name: ClassVar[str] = "simulator"

    def __init__(self, plan: Plan, graph: LayerGraph, profile: Profile | None = None) -> None:
        if reasons := self.unsupported(plan):
            raise BackendError(f"backend {self.name} cannot run this plan", tuple(reasons))
        self.plan, self.graph, self.profile = plan, graph, profile

    @classmethod
    def unsupported(cls, plan: Plan) -> list[str]:
        """Why this backend cannot run the plan, one sentence each; empty when it can."""
        return (
            [] if len(plan.pipelines) == 1 else [f"the plan has {len(plan.pipelines)} pipelines; simulate one replica at a time"]
        )

    def run(self) -> BatchRun:
        """The plan's batch through the schedule that our engine interprets. Raises BackendError for a plan for serving."""
        workload = self.plan.workload
        if not isinstance(workload, Batch):
            raise BackendError("the plan is for serving; give the simulator requests to serve")
        one = replay(plan_schedule(self.plan), stage_seconds(self.plan, self.graph, self.profile), workload)
        return one if self.plan.rounds == 1 else _repeated(one, self.plan.rounds)

    def serve(self, requests: Sequence[Request], keep_spans: int = 0) -> Run:
        """Requests served by the scheduling policy of vLLM. Raises InputError for a plan of a batch."""
        return simulate_plan(self.plan, self.graph, self.plan.engine, requests, keep_spans, self.profile)


def _repeated(one: BatchRun, rounds: int) -> BatchRun:
    """A batch of which some wait: rounds one after the other, the spans those of the first."""
    return replace(one, seconds=rounds * one.seconds, prefill_s=rounds * one.prefill_s, tokens_per_s=one.tokens_per_s / rounds)


def replay(actions: Schedule, seconds: StageSeconds, workload: Batch) -> BatchRun:
    """The schedule with these seconds: of a micro-batch on each stage, and of sending its result on."""
    rows, stages = [actions.actions(stage) for stage in range(len(actions.rows))], range(len(actions.rows))
    compute, send = Times(seconds.prefill, seconds.decode), Times(seconds.prefill_link, seconds.decode_link)
    spans = simulated_spans(rows, actions.prefill_per_decode, compute, send)
    total_s = max(span.end_s for span in spans)
    return BatchRun(
        seconds=total_s,
        prefill_s=max((span.end_s for span in spans if span.action.startswith("P")), default=0.0),
        tokens_per_s=workload.batch_size * workload.gen_len / total_s,
        busy=tuple(sum(s.computed_s - s.start_s for s in spans if s.stage == j) / total_s for j in stages),
        spans=spans,
    )
