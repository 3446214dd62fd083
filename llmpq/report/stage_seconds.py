"""StageSeconds: what each stage of a plan, and the link that leaves it, takes for a micro-batch, by the planner's costs."""

from collections import Counter
from dataclasses import dataclass

from llmpq.costs.latency import embedding_latency_s, head_latency_s, layer_latency_s
from llmpq.costs.profile import Profile
from llmpq.graph import FLOAT_BYTES, LayerGraph
from llmpq.hardware.cluster import Device
from llmpq.plan import Plan, Stage
from llmpq.planning.candidates import TOKEN_BYTES
from llmpq.precision import parse_precision
from llmpq.simulation.planned import StageTimes
from llmpq.simulation.scheduler import StepShape
from llmpq.workload import Serving


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds of a prefill and of a decode micro-batch on each stage, and of sending its result on.

    When serving a step holds prompts and decoding sequences together: `prefill` and `prefill_link` are then empty.
    """

    prefill: tuple[float, ...]
    prefill_link: tuple[float, ...]
    decode: tuple[float, ...]
    decode_link: tuple[float, ...]


def stage_seconds(plan: Plan, graph: LayerGraph, profile: Profile | None = None) -> StageSeconds:
    """Of a batch as the planner charges it: no return after prefill. Of serving for the mean step at full load.

    profile: what the plan rests on, where its times were measured.
    """
    if isinstance(plan.workload, Serving):
        return _of_serving(plan, graph)
    rows, prompt = plan.pipeline.prefill_micro_batch, plan.workload.prompt_len
    middle = prompt + plan.workload.gen_len // 2  # decode is costed half way through the generation
    prefill, decode = (rows, prompt, prompt), (plan.pipeline.decode_micro_batch, 1, middle)
    times, stages = _BatchTimes(plan, graph, profile), range(len(plan.stages))
    return StageSeconds(
        tuple(times.stage_s(index, *prefill) for index in stages),
        (*(_link_s(plan, index, rows, rows * prompt * graph.hidden_size * FLOAT_BYTES) for index in stages[:-1]), 0.0),
        tuple(times.stage_s(index, *decode) for index in stages),
        tuple(_link_s(plan, index, decode[0], decode[0] * graph.hidden_size * FLOAT_BYTES) for index in stages),
    )


def mean_step(plan: Plan, workload: Serving) -> StepShape:
    """What a step of a plan for serving holds on average at full load."""
    load = plan.load
    prompts, sequences = round(load.prefill_tokens), round(load.running / load.in_flight)
    context = round(sequences * workload.resident_tokens)
    return StepShape(prompts, round(prompts * (workload.new_prompt_tokens + 1) / 2), sequences, context, sequences)


def _of_serving(plan: Plan, graph: LayerGraph) -> StageSeconds:
    assert isinstance(plan.workload, Serving)
    times, step = StageTimes(plan, graph, plan.engine), mean_step(plan, plan.workload)
    seconds, stages = times.stage_s(), range(len(plan.stages))
    return StageSeconds(
        (), (), tuple(seconds(stage, step) for stage in stages), tuple(times.link_s(stage, step) for stage in stages)
    )


@dataclass(frozen=True, slots=True)
class _BatchTimes:
    """Seconds of the plan's stages for `rows` sequences of `tokens` new tokens that see `context` positions."""

    plan: Plan
    graph: LayerGraph
    profile: Profile | None

    def stage_s(self, index: int, rows: int, tokens: int, context: int) -> float:
        stage = self.plan.stages[index]
        device, size = self.plan.cluster.device(stage.device), (rows, tokens, context)
        first, last = self._ends_s(device, *size)
        layers = sum(count * self._layer_s(device, kind, option, *size) for (kind, option), count in self._alike(stage).items())
        return layers + first * (index == 0) + last * (index == len(self.plan.stages) - 1)

    def _alike(self, stage: Stage) -> Counter[tuple[int, str]]:
        """How many layers of the stage there are of each (kind, option)."""
        return Counter((self.graph.layer_kind[layer], option) for layer, option in zip(stage.layers, stage.options))

    def _layer_s(self, device: Device, kind: int, option: str, rows: int, tokens: int, context: int) -> float:
        what, precision = self.graph.kinds[kind], parse_precision(option)
        measured = self.profile.layer_s(device, what, precision, rows, tokens, context) if self.profile else None
        if measured is not None:
            return measured
        return layer_latency_s(device, what, precision, rows, tokens, context, self.plan.compute_dtype, self.plan.engine)

    def _ends_s(self, device: Device, rows: int, tokens: int, context: int) -> tuple[float, float]:
        measured = self.profile.ends_s(device, self.graph, rows, tokens, context) if self.profile else None
        if measured is not None:
            return measured
        dtype = self.plan.compute_dtype
        return embedding_latency_s(device, self.graph, rows * tokens, dtype), head_latency_s(device, self.graph, rows, dtype)


def _link_s(plan: Plan, index: int, rows: int, hidden_bytes: int) -> float:
    """The hidden state to the next stage; from the last one the tokens back to the first."""
    last = index == len(plan.stages) - 1
    target = plan.stages[0 if last else index + 1].device
    link = plan.cluster.link(plan.stages[index].device, target)
    return 0.0 if len(plan.stages) == 1 else link.transfer_s(rows * TOKEN_BYTES if last else hidden_bytes)
