"""From several pipelines to one Plan: each on its own devices, figures of each and of all together."""

from dataclasses import replace

from llmpq.plan import Load, Optimality, Pipeline, Plan, Prediction, Quality, Replica
from llmpq.planning.make_plan import make_plan
from llmpq.planning.replica_search import Part, Several
from llmpq.planning.teams import real_devices
from llmpq.program import Program


def make_replicas(program: Program, several: Several, optimality: Optimality, budget: float | None) -> Plan:
    """The plan of these pipelines, those with the largest weights first."""
    parts = sorted(several.parts, key=lambda part: -part.weight)
    devices = program.request.cluster.devices
    own = real_devices(several.teams, tuple(part.team for part in parts))
    plans = [
        _on(_planned(part, optimality, budget), {devices[a].name: devices[b].name for a, b in names.items()})
        for part, names in zip(parts, own)
    ]
    pipelines = tuple(_pipeline(plan, part) for plan, part in zip(plans, parts))
    worst = max(plans, key=lambda plan: plan.quality.sensitivity)
    return replace(
        plans[0],
        workload=program.request.workload,
        pipelines=pipelines,
        prediction=_together(tuple(plans)),
        quality=Quality(worst.quality.sensitivity, budget, worst.quality.provenance),
        optimality=optimality,
    )


def _planned(part: Part, optimality: Optimality, budget: float | None) -> Plan:
    found = part.found
    alone = Optimality(found.objective, None, False, optimality.solver)
    return make_plan(part.program, found.candidate, found.problem, found.assignment, alone, budget)


def _on(plan: Plan, names: dict[str, str]) -> Plan:
    """The plan with its devices exchanged for others that are like them."""
    stages = tuple(replace(stage, device=names[stage.device]) for stage in plan.stages)
    memory = tuple(replace(entry, device=names[entry.device]) for entry in plan.prediction.memory)
    return replace(plan, pipelines=(replace(plan.pipeline, stages=stages),), prediction=replace(plan.prediction, memory=memory))


def _pipeline(plan: Plan, part: Part) -> Pipeline:
    replica = Replica(part.weight, plan.workload, plan.prediction, plan.quality, plan.optimality.objective)
    return replace(plan.pipeline, replica=replica)


def _together(plans: tuple[Plan, ...]) -> Prediction:
    """A batch takes as long as the slowest; when serving the rates add up, and latencies are those of the slowest."""
    slowest = max(plans, key=lambda plan: plan.prediction.latency_s).prediction
    loads = tuple(plan.prediction.load for plan in plans if plan.prediction.load is not None)
    load = _loads_together(loads) if loads else None
    return Prediction(
        prefill_s=slowest.prefill_s,
        decode_s=slowest.decode_s,
        memory=tuple(entry for plan in plans for entry in plan.prediction.memory),
        provenance=slowest.provenance,
        load=load,
    )


def _loads_together(loads: tuple[Load, ...]) -> Load:
    return Load(
        running=sum(load.running for load in loads),
        in_flight=sum(load.in_flight for load in loads),
        token_budget=max(load.token_budget for load in loads),
        prefill_tokens=sum(load.prefill_tokens for load in loads),
        kv_tokens=sum(load.kv_tokens for load in loads),
        kv_blocks=sum(load.kv_blocks for load in loads),
        block_size=loads[0].block_size,
        tpot_s=max(load.tpot_s for load in loads),
        ttft_s=max(load.ttft_s for load in loads),
        tokens_per_s=sum(load.tokens_per_s for load in loads),
        requests_per_s=sum(load.requests_per_s for load in loads),
    )
