"""StageSeconds: what each stage of a plan, and the link that leaves it, takes for a micro-batch, by the planner's costs."""

from collections import Counter
from dataclasses import dataclass

from llmpq.costs.latency import embedding_latency_s, head_latency_s, layer_latency_s
from llmpq.graph import FLOAT_BYTES, LayerGraph
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


def stage_seconds(plan: Plan, graph: LayerGraph) -> StageSeconds:
    """Of a batch as the planner charges it: no return after prefill. Of serving for the mean step at full load."""
    if isinstance(plan.workload, Serving):
        return _of_serving(plan, graph)
    rows, prompt = plan.pipeline.prefill_micro_batch, plan.workload.prompt_len
    middle = prompt + plan.workload.gen_len // 2  # decode is costed half way through the generation
    prefill, decode = (rows, prompt, prompt), (plan.pipeline.decode_micro_batch, 1, middle)
    stages = range(len(plan.stages))
    return StageSeconds(
        tuple(_stage_s(plan, graph, index, *prefill) for index in stages),
        (*(_link_s(plan, index, rows, rows * prompt * graph.hidden_size * FLOAT_BYTES) for index in stages[:-1]), 0.0),
        tuple(_stage_s(plan, graph, index, *decode) for index in stages),
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


def _stage_s(plan: Plan, graph: LayerGraph, index: int, rows: int, tokens: int, context: int) -> float:
    stage, dtype = plan.stages[index], plan.compute_dtype
    device = plan.cluster.device(stage.device)
    seconds = sum(
        count * layer_latency_s(device, graph.kinds[kind], parse_precision(name), rows, tokens, context, dtype, plan.engine)
        for (kind, name), count in _alike(graph, stage).items()
    )
    if index == 0:
        seconds += embedding_latency_s(device, graph, rows * tokens, dtype)
    if index == len(plan.stages) - 1:
        seconds += head_latency_s(device, graph, rows, dtype)
    return seconds


def _alike(graph: LayerGraph, stage: Stage) -> Counter[tuple[int, str]]:
    """How many layers of the stage there are of each (kind, option)."""
    return Counter((graph.layer_kind[layer], option) for layer, option in zip(stage.layers, stage.options))


def _link_s(plan: Plan, index: int, rows: int, hidden_bytes: int) -> float:
    """The hidden state to the next stage; from the last one the tokens back to the first."""
    last = index == len(plan.stages) - 1
    target = plan.stages[0 if last else index + 1].device
    link = plan.cluster.link(plan.stages[index].device, target)
    return 0.0 if len(plan.stages) == 1 else link.transfer_s(rows * TOKEN_BYTES if last else hidden_bytes)
