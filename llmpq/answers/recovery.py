"""Recovery: the best plan for a quantized model on the devices that are left, every layer as it was quantized."""

from collections.abc import Collection
from dataclasses import replace

from llmpq.answers.cluster_changes import removed
from llmpq.errors import InfeasibleError
from llmpq.graph import LayerGraph
from llmpq.layer_option import parse_options
from llmpq.plan import Plan
from llmpq.planning.costing import costed
from llmpq.planning.joint import joint_plan
from llmpq.program import Program, Request, Target
from llmpq.sensitivity import prior
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch

SEARCH_S = 5.0  # assumed: what a run that stands still may wait for a better plan


def plan_without(graph: LayerGraph, plan: Plan, lost: Collection[str]) -> Plan:
    """The plan without those devices: other stages, the same precision of every layer, the same compute dtype.

    Where the batch does not fit any more, fewer sequences run at a time: half as many until they fit. Rules that name a lost
    device hold no longer. Raises InfeasibleError with the reasons when not one sequence fits, ClusterError when no device is
    left.
    """
    lost = [member for name in lost for member in plan.cluster.device(name).members]
    cluster, batch_size = removed(plan.cluster, ",".join(lost)), plan.batch.batch_size
    kept = [rule for rule in plan.constraints if not any(name.lower() in rule.lower() for name in lost)]
    rules = parse_rules((*kept, *_as_they_are(plan.options)))
    options = parse_options(tuple(dict.fromkeys(plan.options)))
    while True:
        workload = Batch(batch_size, plan.batch.prompt_len, plan.batch.gen_len)
        request = Request(cluster, workload, options, Target(None, explicit=True), rules, plan.engine, time_limit_s=SEARCH_S)
        program = replace(costed(Program(graph, request)), sensitivity=prior(graph, options), compute_dtype=plan.compute_dtype)
        try:
            found: Plan = joint_plan(program).require("plan")
        except InfeasibleError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        return replace(found, constraints=tuple(kept))


def _as_they_are(options: tuple[str, ...]) -> list[str]:
    """Rules that keep every layer at its precision, one for each run of equal ones."""
    starts = [i for i, option in enumerate(options) if i == 0 or options[i - 1] != option]
    stops = [*starts[1:], len(options)]
    return [f"layers[{start}:{stop}].precision == {options[start]}" for start, stop in zip(starts, stops)]
