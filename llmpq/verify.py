"""The verifier: what must hold of a program after every pass."""

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite

from llmpq.errors import ClusterError, VerifyError
from llmpq.hardware.cluster import TOGETHER, Cluster
from llmpq.hardware.support import support
from llmpq.layer_option import SEPARATOR, mean_bits
from llmpq.plan import SERVED_TOKENS, Plan
from llmpq.precision import PRECISIONS
from llmpq.program import Program
from llmpq.solver.problem import Assignment
from llmpq.solver.rules import RuleContext, rule_rows
from llmpq.workload import Serving

TOLERANCE = 1e-6  # relative, of sums of floats


def verify_program(program: Program, after: str) -> None:
    """Raises VerifyError, naming the pass, when a value contradicts itself or its neighbours."""
    problems = list(_program_problems(program))
    if program.plan is not None:
        problems += plan_problems(program.plan, program)
    if problems:
        raise VerifyError(f"after pass {after}: {'; '.join(problems)}")


def _program_problems(program: Program) -> Iterator[str]:
    table, plan, stages = program.sensitivity, program.plan, program.stages
    if table is not None and len(table.rows) != program.graph.num_layers:
        yield f"sensitivity has {len(table.rows)} rows for {program.graph.num_layers} layers"
    asked = tuple(precision.name for precision in program.request.precisions)
    if table is not None and table.options != asked:
        yield f"sensitivity is of {', '.join(table.options)}, the request of {', '.join(asked)}"
    if stages is not None and plan is not None and len(stages) != len(plan.stages):
        yield f"{len(stages)} stage modules for {len(plan.stages)} stages of the plan"


def plan_problems(plan: Plan, program: Program) -> list[str]:
    """Everything in which the plan contradicts itself or the request; nothing that is merely not optimal."""
    if len(plan.pipelines) > 1:
        return list(_replica_problems(plan, program))
    found = [*placement_problems(plan, program), *_micro_batch_problems(plan)]
    if found:
        return found  # the others presume that layers, devices and options are known
    checks = (_memory_problems, _request_problems, _quality_problems, _optimality_problems)
    return [problem for check in checks for problem in check(plan, program)]


def placement_problems(plan: Plan, program: Program) -> Iterator[str]:
    """Every layer once and in order, on known devices, each device once, at options that were asked for."""
    layers = [layer for stage in plan.stages for layer in stage.layers]
    graph = program.graph
    if layers != list(range(graph.num_layers)) and plan.model != graph.model:
        yield f"the plan is of {plan.model} and places {len(layers)} layers; {graph.model} has {graph.num_layers}"
    elif layers != list(range(graph.num_layers)):
        yield f"the stages hold layers {layers}, not each of 0..{graph.num_layers - 1} once and in order"
    devices = [stage.device for stage in plan.stages]
    cluster = program.request.cluster
    for stage in plan.stages:
        if not _is_known(cluster, stage.device):
            yield f"stage device {stage.device!r} is not in the cluster"
        if not stage.options:
            yield f"the stage on {stage.device} holds no layer"
    if _is_shared(devices):
        yield f"a device holds more than one stage: {', '.join(devices)}"
    allowed = [precision.name for precision in program.request.precisions]
    for option in sorted(set(plan.options) - set(allowed)):
        is_known = set(option.split(SEPARATOR)) <= set(PRECISIONS)
        yield f"option {option!r} was not asked for" if is_known else f"option {option!r} is unknown"


def _is_known(cluster: Cluster, name: str) -> bool:
    """Whether it is a device of the cluster, or a group of such."""
    try:
        return cluster.device(name).name == name
    except ClusterError:
        return False


def _is_shared(names: list[str]) -> bool:
    """Whether a device is in two of these, which may be groups."""
    single = [member for name in names for member in name.split(TOGETHER)]
    return len(set(single)) < len(single)


def _replica_problems(plan: Plan, program: Program) -> Iterator[str]:
    """Each pipeline by itself; no device in two of them; weights that add up to 1, and an objective that follows from theirs."""
    for number, one in enumerate(plan.replicas):
        request = replace(program.request, workload=one.workload)
        yield from (f"replica {number}: {problem}" for problem in plan_problems(one, replace(program, request=request)))
    devices = [stage.device for pipeline in plan.pipelines for stage in pipeline.stages]
    if _is_shared(devices):
        yield f"a device is in more than one pipeline: {', '.join(devices)}"
    replicas = [pipeline.replica for pipeline in plan.pipelines if pipeline.replica is not None]
    if len(replicas) < len(plan.pipelines):
        yield f"{len(plan.pipelines)} pipelines, and only {len(replicas)} of them say what they are for"
        return
    if abs(sum(one.weight for one in replicas) - 1.0) > TOLERANCE:
        yield f"the weights of the pipelines add up to {sum(one.weight for one in replicas):.6g}, not to 1"
    objectives = [one.objective for one in replicas]
    together = 1.0 / sum(1.0 / s for s in objectives) if isinstance(plan.workload, Serving) else max(objectives)
    if abs(together - plan.optimality.objective) > TOLERANCE * together:
        yield f"the objective is {plan.optimality.objective:.6g} s, those of the pipelines make {together:.6g} s"


def _micro_batch_problems(plan: Plan) -> Iterator[str]:
    if isinstance(plan.workload, Serving):
        yield from _load_problems(plan, plan.workload)
        return
    prefill, decode, batch = plan.pipeline.prefill_micro_batch, plan.pipeline.decode_micro_batch, plan.batch.batch_size
    if not 1 <= batch <= plan.workload.batch_size:
        yield f"{batch} sequences are in the cache at once, of a batch of {plan.workload.batch_size}"
    if not 1 <= prefill <= decode <= batch:
        yield f"micro-batches of {prefill} (prefill) and {decode} (decode) sequences of a batch of {batch}"
    elif decode % prefill:
        yield f"prefill micro-batch {prefill} does not divide decode micro-batch {decode}"


def _load_problems(plan: Plan, workload: Serving) -> Iterator[str]:
    """As many batches in flight as stages, steps within their budget, figures that agree, the limits of the workload kept."""
    load = plan.prediction.load
    if load is None:
        yield "the workload is for serving, and the plan has no load"
        return
    sequences = load.running // load.in_flight
    if load.in_flight != len(plan.stages) or load.running != sequences * load.in_flight:
        yield f"{load.running} sequences in {load.in_flight} batches on {len(plan.stages)} stages"
    if sequences + load.prefill_tokens > load.token_budget:
        yield f"a step of {sequences} sequences and {load.prefill_tokens:.6g} prompt tokens has a budget of {load.token_budget}"
    if abs(load.tokens_per_s * load.tpot_s - load.running) > TOLERANCE * load.running:
        yield f"{load.running} sequences at {load.tpot_s:.6g} s per token are not {load.tokens_per_s:.6g} tokens/s"
    for name, found, limit in (("ttft", load.ttft_s, workload.ttft_s), ("tpot", load.tpot_s, workload.tpot_s)):
        if limit is not None and found > limit * (1 + TOLERANCE):
            yield f"{name} is {found:.6g} s, its limit is {limit:.6g} s"


def _memory_problems(plan: Plan, program: Program) -> Iterator[str]:
    """A figure per stage, no term negative, within what the device has."""
    memory = plan.prediction.memory
    if [entry.device for entry in memory] != [stage.device for stage in plan.stages]:
        yield f"memory is told of {', '.join(entry.device for entry in memory)}, not of each stage's device in order"
        return
    for entry in memory:
        terms = (entry.weights, entry.kv_cache, entry.activations, entry.embedding, entry.head)
        if min(terms) < 0:
            yield f"{entry.device} has a negative term of memory: {terms}"
        capacity = program.request.cluster.device(entry.device).capacity_bytes
        if entry.capacity != capacity:
            yield f"the plan gives {entry.device} {entry.capacity} bytes, the cluster {capacity}"
        if entry.total > entry.capacity:
            yield f"{entry.device} needs {entry.total} bytes and has {entry.capacity}"


def _request_problems(plan: Plan, program: Program) -> Iterator[str]:
    """Model, workload and cluster as asked for; what the engine cannot run; the user's rules."""
    request = program.request
    if (plan.model, plan.workload, plan.cluster) != (program.graph.model, request.workload, request.cluster):
        yield "the plan is of another model, workload or cluster than the request"
    for stage in plan.stages:
        device = request.cluster.device(stage.device).type
        for precision in request.precisions:
            if precision.name in stage.options and support(request.engine, device, precision).level == "unsupported":
                yield f"{precision.name} is unsupported on {stage.device} by engine {request.engine}"
    yield from broken_rules(plan, program)


def broken_rules(plan: Plan, program: Program) -> tuple[str, ...]:
    """The user's rules that the plan does not keep."""
    graph, precisions = program.graph, program.request.precisions
    options = tuple(precision.name for precision in precisions)
    context = RuleContext(
        num_layers=graph.num_layers,
        devices=tuple(stage.device for stage in plan.stages),
        known_devices=tuple(device.name for device in program.request.cluster.devices),
        options=options,
        option_bits=tuple(mean_bits(option, graph.attention_share) for option in precisions),
        layer_parameters=tuple(graph.kind_of(i).parameters for i in range(graph.num_layers)),
    )
    device = tuple(j for j, stage in enumerate(plan.stages) for _ in stage.layers)
    assignment = Assignment(device, tuple(options.index(option) for option in plan.options))
    rows = rule_rows(program.request.rules, context)
    return tuple(dict.fromkeys(f"constraint {row.label!r} is broken" for row in rows if not row.holds(assignment)))


def _quality_problems(plan: Plan, program: Program) -> Iterator[str]:
    quality = plan.quality
    if quality.budget is not None and quality.sensitivity > quality.budget * (1 + TOLERANCE):
        yield f"sensitivity {quality.sensitivity:.6g} exceeds the budget {quality.budget:.6g}"
    if program.sensitivity is not None:
        total = program.sensitivity.total(plan.options)
        if abs(total - quality.sensitivity) > TOLERANCE * max(abs(total), TOLERANCE):
            yield f"sensitivity is given as {quality.sensitivity:.6g}, its table adds up to {total:.6g}"


def _optimality_problems(plan: Plan, program: Program) -> Iterator[str]:
    """Seconds that are seconds, an objective that they add up to, a bound below it, a proof only where the gap is closed."""
    prediction, optimality, target = plan.prediction, plan.optimality, program.request.target
    seconds = (prediction.prefill_s, prediction.decode_s)
    if not all(isfinite(value) and value >= 0 for value in seconds):
        yield f"predicted seconds are {seconds[0]} and {seconds[1]}"
    seconds_of = prediction.latency_s if prediction.load is None else SERVED_TOKENS / prediction.load.tokens_per_s
    expected = seconds_of + (target.theta or 0.0) * plan.quality.sensitivity
    if abs(optimality.objective - expected) > TOLERANCE * max(abs(expected), TOLERANCE):
        yield f"the objective is {optimality.objective:.6g} s, prediction and quality add up to {expected:.6g} s"
    if optimality.bound is not None and optimality.bound > optimality.objective * (1 + TOLERANCE):
        yield f"the bound {optimality.bound:.6g} s is above the objective {optimality.objective:.6g} s"
    if optimality.proven and optimality.bound is None:
        yield "the plan claims to be proven and has no bound"
