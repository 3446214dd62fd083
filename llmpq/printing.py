"""Canonical text of the values of a compilation: stable, diffable, compared by golden tests."""

from itertools import groupby
from typing import TYPE_CHECKING

from llmpq.graph import LayerGraph
from llmpq.op_graph import Op, OpGraph
from llmpq.sensitivity import SensitivityTable
from llmpq.units import format_bytes, format_seconds
from llmpq.workload import Batch, Workload

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from llmpq.plan import Pipeline, Plan, Range, Stage
    from llmpq.program import Program


def format_ranges(options: tuple[str, ...], first: int) -> str:
    """Equal neighbours folded: "0-3 w4a16, 4-11 w8a8"."""
    parts = []
    for option, run in groupby(enumerate(options, first), key=lambda item: item[1]):
        layers = [layer for layer, _ in run]
        span = str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
        parts.append(f"{span} {option}")
    return ", ".join(parts)


def format_graph(graph: LayerGraph) -> str:
    """The outer graph: ends, kinds with their linears, and which layer is of which kind."""
    lines = [
        f"layer graph {graph.model}: {graph.architecture}, {graph.num_layers} layers, hidden {graph.hidden_size}, "
        f"vocabulary {graph.vocab_size}, {graph.parameters:,} parameters"
    ]
    lines += [f"  first {p.name} {list(p.shape)}" for p in graph.first]
    for k, kind in enumerate(graph.kinds):
        attention = kind.attention
        window = f", window {attention.window}" if attention.window else ""
        heads = f"{attention.num_heads} heads, {attention.num_kv_heads} kv, head_dim {attention.head_dim}"
        lines.append(f"  kind {k} {kind.name}: {heads}{window}")
        lines += [
            f"    {linear.name} [{linear.out_features}, {linear.in_features}]"
            + (f" x{linear.experts} experts, {linear.active_experts} active" if linear.experts > 1 else "")
            + (" bias" if linear.bias else "")
            + (" transposed" if linear.transposed else "")
            + f" {linear.part} group {linear.fusion_group}"
            for linear in kind.linears
        ]
        lines.append(f"    other parameters {kind.other_parameters:,}")
    lines.append(f"  layers {format_ranges(tuple(f'kind {k}' for k in graph.layer_kind), 0)}")
    lines += [f"  last {p.name} {list(p.shape)}" for p in graph.last]
    if graph.tied_head:
        lines.append(f"  head {graph.head} tied to {graph.tied_head}")
    return "\n".join(lines)


def format_op_graph(graph: OpGraph) -> str:
    """One line per operator: what it reads, its parameters, FLOPs and bytes as functions of batch, tokens and context."""
    lines = [f"operators of {', '.join(graph.inputs)} -> {', '.join(graph.outputs)}"]
    lines += [line for op in graph.ops for line in _format_op(op)]
    lines.append(f"  FLOPs {graph.flops}; parameters {graph.weight_bytes:,} bytes")
    return "\n".join(lines)


def _format_op(op: Op) -> list[str]:
    """The operator; below it what it costs, where it costs anything."""
    weights = "".join(f" {weight.name} {list(weight.shape)}" for weight in op.weights)
    stored = " transposed" if op.product is not None and op.product.transposed else ""
    heads = f" {op.heads.num_heads} heads, {op.heads.num_kv_heads} kv, {op.heads.head_dim}" if op.heads is not None else ""
    flops = [f"FLOPs {op.flops}"] if op.flops.terms else []
    moved = [f"reads {op.reads}", f"writes {op.writes}"] if op.kind != "view" else []
    costs = [f"      {'; '.join([*flops, *moved])}"] if flops or moved else []
    return [f"  {op.name} = {op.detail}({', '.join(op.inputs)}){weights}{stored}{heads}", *costs]


def format_plan(plan: "Plan") -> str:
    """The plan: workload, stages with their layers and memory, prediction, quality, optimality."""
    if len(plan.pipelines) > 1:
        each = map(_format_replica, plan.replicas, plan.pipelines)
        return "\n".join((f"{len(plan.pipelines)} pipelines: {format_together(plan)}", *each))
    prediction = plan.prediction
    dtypes = f"{plan.compute_dtype}{format_cache(plan)}"
    lines = [f"plan for {plan.model}: {format_workload(plan.workload)}, {dtypes}", f"  {format_sizes(plan)}"]
    for stage, memory in zip(plan.stages, prediction.memory, strict=True):
        lines.append(f"  {stage.device}: {format_stage(stage)}; {format_bytes(memory.total)} of {format_bytes(memory.capacity)}")
    lines += [
        f"  predicted: {format_speed(plan)} ({prediction.provenance})",
        f"  quality: {format_quality(plan)}",
        f"  {format_optimality(plan)}",
    ]
    return "\n".join(lines)


def format_cache(plan: "Plan") -> str:
    """ ", KV cache at int8" where it is not kept at 16 bits."""
    return "" if plan.kv_precision == "16" else f", KV cache at {plan.kv_precision}"


def format_together(plan: "Plan") -> str:
    """What several pipelines do together."""
    return f"{plan.tokens_per_s:.4g} tokens/s, {format_optimality(plan)}"


def format_weight(weight: float, workload: Workload) -> str:
    """What one of several pipelines is given."""
    return f"{weight:.1%} of the {'sequences' if isinstance(workload, Batch) else 'requests'}"


def _format_replica(plan: "Plan", pipeline: "Pipeline") -> str:
    weight = 1.0 if pipeline.replica is None else pipeline.replica.weight
    return f"{format_weight(weight, plan.workload)}: {format_plan(plan)}"


def format_workload(workload: Workload) -> str:
    if isinstance(workload, Batch):
        return f"batch {workload.batch_size}, prompt {workload.prompt_len}, generate {workload.gen_len}"
    limits = [
        f"{name} {format_seconds(s)}" for name, s in (("ttft", workload.ttft_s), ("tpot", workload.tpot_s)) if s is not None
    ]
    hits = f", prefix hits {workload.prefix_hits:.0%}" if workload.prefix_hits else ""
    lengths = f"prompt {workload.prompt_len}{hits}, generate {workload.gen_len}"
    return f"serving {workload.rate_per_s:.4g} requests/s, {lengths}, {', '.join(limits) or 'no latency limit'}"


def format_sizes(plan: "Plan") -> str:
    """Micro-batches, or what runs at once and the cache it needs."""
    pipeline, load = plan.pipeline, plan.prediction.load
    if load is None:
        sizes = f"micro-batches: prefill {pipeline.prefill_micro_batch}, decode {pipeline.decode_micro_batch} sequences"
        return f"{sizes}{format_resident(plan)}"
    cache = f"{load.kv_tokens} KV tokens in {load.kv_blocks} blocks of {load.block_size}"
    return f"running: {load.running} sequences in {load.in_flight} batches, at most {load.token_budget} tokens a step; {cache}"


def format_resident(plan: "Plan") -> str:
    """What of a batch that queues is in the cache at once."""
    if plan.pipeline.resident is None or not isinstance(plan.workload, Batch):
        return ""
    return f"; resident {plan.pipeline.resident} of {plan.workload.batch_size}, {plan.rounds} rounds"


def format_speed(plan: "Plan") -> str:
    """Tokens per second and the seconds behind them, each with its 90 % band."""
    load, rate = plan.prediction.load, f"{plan.tokens_per_s:.4g} tokens/s{format_rate_band(plan)}"
    if load is None:
        return f"{format_phases(plan)}, {rate}"
    bands = plan.prediction.bands
    tpot = format_with_band(load.tpot_s, bands.decode_s if bands else None)
    return f"tpot {tpot}, ttft at most {format_seconds(load.ttft_s)}, {rate}, {load.requests_per_s:.4g} requests/s at full load"


def format_phases(plan: "Plan") -> str:
    """The seconds of a batch: "prefill 1.2 s (1.1-1.4), decode 12.4 s (11.6-13.3)"."""
    prediction, bands = plan.prediction, plan.prediction.bands
    prefill = format_with_band(prediction.prefill_s, bands.prefill_s if bands else None)
    return f"prefill {prefill}, decode {format_with_band(prediction.decode_s, bands.decode_s if bands else None)}"


def format_with_band(seconds: float, band: "Range | None") -> str:
    """ "12.4 s (11.6-13.3)", "1.1 s (900 ms-1.4 s)" where units differ; without a band the seconds alone."""
    shown = format_seconds(seconds)
    if band is None:
        return shown
    ends = [format_seconds(band.low), format_seconds(band.high)]
    unit = shown.partition(" ")[2]
    if unit in ("s", "ms", "us") and all(end.partition(" ")[2] == unit for end in ends):
        ends = [end.partition(" ")[0] for end in ends]
    return f"{shown} ({'-'.join(ends)})"


def format_rate_band(plan: "Plan") -> str:
    """ " (64-80)": the band of tokens per second, or nothing."""
    bands = plan.prediction.bands
    return "" if bands is None else f" ({bands.tokens_per_s.low:.4g}-{bands.tokens_per_s.high:.4g})"


def format_stage(stage: "Stage") -> str:
    return f"layers {format_ranges(stage.options, stage.first_layer)}"


def format_quality(plan: "Plan") -> str:
    budget = "no budget" if plan.quality.budget is None else f"budget {plan.quality.budget:.4f}"
    return f"+{plan.quality.sensitivity:.4f} nats per token, {budget} ({plan.quality.provenance})"


def format_optimality(plan: "Plan") -> str:
    optimality = plan.optimality
    if optimality.bound is None or optimality.gap is None:
        return f"objective {optimality.objective:.6g} s by {optimality.solver}, a baseline that proves nothing"
    state = "proven" if optimality.proven else "not proven"
    bound = f"bound {optimality.bound:.6g} s, gap {optimality.gap:.2%} {state}"
    return f"objective {optimality.objective:.6g} s by {optimality.solver}, {bound}"


def format_sensitivity(table: SensitivityTable) -> str:
    lines = [f"sensitivity by {table.indicator} ({table.provenance}), nats per token"]
    lines += [
        f"  layer {i}: " + ", ".join(f"{option} {value:.6f}" for option, value in zip(table.options, row))
        for i, row in enumerate(table.rows)
    ]
    return "\n".join(lines)


def format_graph_module(module: "GraphModule") -> str:
    """One line per fx node: name, operation, target, arguments, and what a pass wrote on it."""
    return "\n".join(_format_node(node) for node in module.graph.nodes)


def _format_node(node: "Node") -> str:
    arguments = ", ".join([*map(str, node.args), *(f"{key}={value}" for key, value in node.kwargs.items())])
    target = getattr(node.target, "__name__", node.target)
    note = node.meta.get("llmpq")
    return f"  {node.name} = {node.op} {target}({arguments})" + (f"  # {note}" if note is not None else "")


def format_program(program: "Program") -> str:
    """Everything that is there, in the order in which passes provide it."""
    parts = [format_graph(program.graph)]
    if program.sensitivity is not None:
        parts.append(format_sensitivity(program.sensitivity))
    if program.plan is not None:
        parts.append(format_plan(program.plan))
    if program.stages is not None:
        parts += [f"stage {i}\n{format_graph_module(stage)}" for i, stage in enumerate(program.stages)]
    elif program.graph_module is not None:
        parts.append(f"graph\n{format_graph_module(program.graph_module)}")
    return "\n".join(parts)
