"""From an assignment to a Plan: stages, memory term by term, predicted seconds."""

from llmpq.costs import CostTable
from llmpq.plan import SERVED_TOKENS, DeviceMemory, Load, Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.planning.bands import bands_of
from llmpq.planning.candidates import Candidate, step_of
from llmpq.planning.room import everywhere_bytes
from llmpq.planning.rounds import cache_bytes
from llmpq.program import Program
from llmpq.solver.problem import Assignment, Problem, evaluate
from llmpq.workload import KV_BLOCK, Serving


def make_plan(
    program: Program, candidate: Candidate, problem: Problem, assignment: Assignment, optimality: Optimality, budget: float | None
) -> Plan:
    """The plan that this assignment of this candidate means."""
    evaluation = evaluate(problem, assignment)
    stages = _stages(problem, assignment)
    load = _load(program, candidate, evaluation.decode_s)
    return Plan(
        model=program.graph.model,
        compute_dtype=program.require("compute_dtype"),
        workload=program.request.workload,
        cluster=program.request.cluster,
        pipelines=(_pipeline(candidate, stages, load),),
        prediction=Prediction(
            prefill_s=evaluation.prefill_s,
            decode_s=evaluation.decode_s if load is None else load.tpot_s,
            memory=tuple(_memory(program, candidate, stages, index) for index in range(len(stages))),
            provenance=program.require("costs").provenance,
            load=load,
            bands=bands_of(program, problem, assignment, load),
        ),
        quality=Quality(evaluation.sensitivity, budget, program.require("sensitivity").provenance),
        optimality=optimality,
        engine=program.request.engine,
        precisions=tuple(precision.name for precision in program.request.precisions),
        constraints=tuple(rule.text for rule in program.request.rules),
        kv_precision=program.graph.cached_at,
    )


def _pipeline(candidate: Candidate, stages: tuple[Stage, ...], load: Load | None) -> Pipeline:
    prefill = candidate.prefill_micro_batch if load is None else 1
    return Pipeline(stages, prefill, candidate.decode_micro_batch, resident=candidate.resident)


def _load(program: Program, candidate: Candidate, objective_s: float) -> Load | None:
    """The load of a serving workload, whose objective is the seconds of SERVED_TOKENS; None for a batch."""
    workload = program.request.workload
    if not isinstance(workload, Serving):
        return None
    step, running = step_of(program, candidate), candidate.running
    trip_s = objective_s * running / SERVED_TOKENS
    return Load(
        running=running,
        in_flight=running // candidate.decode_micro_batch,
        token_budget=step.token_budget,
        prefill_tokens=step.prefill_tokens,
        kv_tokens=workload.kv_tokens(running),
        kv_blocks=workload.kv_blocks(running),
        block_size=KV_BLOCK,
        tpot_s=trip_s,
        ttft_s=trip_s * step.trips_to_first_token,
        tokens_per_s=running / trip_s,
        requests_per_s=running / trip_s / workload.gen_len,
    )


def _stages(problem: Problem, assignment: Assignment) -> tuple[Stage, ...]:
    used = sorted(set(assignment.device))
    held = {j: [i for i, device in enumerate(assignment.device) if device == j] for j in used}
    return tuple(
        Stage(problem.devices[j], held[j][0], tuple(problem.options[assignment.option[i]] for i in held[j])) for j in used
    )


def _memory(program: Program, candidate: Candidate, stages: tuple[Stage, ...], index: int) -> DeviceMemory:
    costs: CostTable = program.require("costs")
    graph, stage = program.graph, stages[index]
    prefill = costs.phase("prefill", candidate.prefill_micro_batch)
    decode = costs.phase("decode", candidate.decode_micro_batch)
    first, last = index == 0, index == len(stages) - 1
    logits = max(prefill.logits_bytes, decode.logits_bytes) if last else 0
    device = costs.devices.index(stage.device)
    cells = [(graph.layer_kind[i], costs.options.index(option)) for i, option in zip(stage.layers, stage.options)]
    return DeviceMemory(
        device=stage.device,
        weights=sum(costs.layer_bytes[kind][option] for kind, option in cells),
        kv_cache=sum(cache_bytes(program, candidate)[graph.layer_kind[i]] for i in stage.layers),
        activations=max(phase.activations.of_stage(device, cells, first) for phase in (prefill, decode)) + logits,
        embedding=costs.first_bytes if first else 0 if last else everywhere_bytes(graph),
        head=(costs.last_bytes_with_first if first else costs.last_bytes) if last else 0,
        capacity=program.request.cluster.device(stage.device).capacity_bytes,
    )
