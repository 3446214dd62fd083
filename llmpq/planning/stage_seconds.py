"""StageSeconds: what each stage of a plan, and the link that leaves it, takes for a micro-batch, by the planner's costs."""

from dataclasses import dataclass
from itertools import pairwise

from llmpq.costs import PhaseCosts
from llmpq.costs.profile import Profile, by_device, profile_of_dtype
from llmpq.costs.serving import mean_step_costs
from llmpq.costs.shard import shard
from llmpq.costs.table import phase_costs
from llmpq.graph import LayerGraph
from llmpq.layer_option import LayerOption, parse_option
from llmpq.plan import Plan
from llmpq.planning.candidates import forward_s, return_s
from llmpq.workload import Batch, Serving


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds of a prefill and of a decode micro-batch on each stage, and of sending its result on.

    Nothing returns after prefill. When serving, `decode` is the mean step at full load, which holds prompts as well, and
    `prefill` is empty.
    """

    prefill: tuple[float, ...]
    prefill_link: tuple[float, ...]
    decode: tuple[float, ...]
    decode_link: tuple[float, ...]


def stage_seconds(plan: Plan, graph: LayerGraph, profile: Profile | None = None) -> StageSeconds:
    """As the planner charges them. profile: what the plan rests on, where its times were measured."""
    profile = profile_of_dtype(profile, plan.compute_dtype)
    devices = tuple(plan.cluster.device(stage.device) for stage in plan.stages)
    part = shard(graph, plan.ranks)
    precisions = tuple(map(parse_option, dict.fromkeys(plan.options)))
    rows, workload = plan.pipeline.decode_micro_batch, plan.workload
    if isinstance(workload, Serving):
        step = mean_step_costs(graph, devices, workload, precisions, plan.compute_dtype, plan.engine, rows, profile)
        return StageSeconds((), (), _stages(plan, graph, precisions, step), (*_forward(plan, step), _return_s(plan, step)))
    prefill, decode = (
        phase_costs(
            part,
            devices,
            precisions,
            shape,
            plan.compute_dtype,
            plan.engine,
            True,
            by_device(profile, devices, plan.cluster.devices, at_once=shape[0] < workload.batch_size),
        )
        for shape in _shapes(plan, workload)
    )
    return StageSeconds(
        _stages(plan, graph, precisions, prefill),
        (*_forward(plan, prefill), 0.0),
        _stages(plan, graph, precisions, decode),
        (*_forward(plan, decode), _return_s(plan, decode)),
    )


def _shapes(plan: Plan, workload: Batch) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Of prefill and decode: sequences, new tokens, context charged for, longest; decode half way through the generation."""
    prompt, middle = workload.prompt_len, workload.prompt_len + workload.gen_len // 2
    return (plan.pipeline.prefill_micro_batch, prompt, prompt, prompt), (
        plan.pipeline.decode_micro_batch,
        1,
        middle,
        workload.kv_len,
    )


def _stages(plan: Plan, graph: LayerGraph, precisions: tuple[LayerOption, ...], costs: PhaseCosts) -> tuple[float, ...]:
    """Seconds of each stage, embedding and head included. An option that its device cannot run takes none."""
    column = {precision.name: index for index, precision in enumerate(precisions)}
    layers = [
        sum(costs.layer_s[graph.layer_kind[i]][j][column[option]] or 0.0 for i, option in zip(stage.layers, stage.options))
        for j, stage in enumerate(plan.stages)
    ]
    layers[0] += costs.first_s[0]
    layers[-1] += costs.last_s[-1]
    return (*(seconds + costs.beside_s(j) for j, seconds in enumerate(layers[:-1])), layers[-1])


def _forward(plan: Plan, costs: PhaseCosts) -> tuple[float, ...]:
    """The hidden state from each stage but the last to the next one."""
    links = (plan.cluster.link(a.device, b.device) for a, b in pairwise(plan.stages))
    return tuple(forward_s(link, costs, stage) for stage, link in enumerate(links))


def _return_s(plan: Plan, costs: PhaseCosts) -> float:
    """The tokens from the last stage to the first."""
    first, last = plan.stages[0].device, plan.stages[-1].device
    if first == last:
        return 0.0
    return return_s(plan.cluster.link(last, first), costs, len(plan.stages) - 1, plan.pipeline.decode_micro_batch)
