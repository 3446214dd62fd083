"""Latency of the operators of an OpGraph: products with weights, attention, and what streams through memory beside them."""

from collections.abc import Callable, Iterable

from llmpq.costs.linear_latency import DTYPE, SIXTEEN, linear_latency_s, roofline_s
from llmpq.costs.peaks import attention_at_efficiency
from llmpq.graph import Attention, LayerKind, Linear
from llmpq.hardware.cluster import Device
from llmpq.hardware.collective_table import collective_s
from llmpq.hardware.support import cache_support
from llmpq.layer_option import LayerOption
from llmpq.op_graph import Collective, Heads, Op, OpGraph, OpKind, Size
from llmpq.plan import ComputeDtype
from llmpq.precision import CachePrecision

Measure = Callable[[Size], int]  # how much a size is in one step
COLLECTIVES: tuple[Collective, ...] = ("all-reduce", "all-gather")
STREAMED: tuple[OpKind, ...] = ("norm", "elementwise", "routing", "cache", "gather")


def of_batch(tokens: int, context: int, rows: int) -> Measure:
    """Sizes in a step of `rows` sequences with `tokens` new tokens that see `context` positions at the end."""
    return lambda size: size(tokens, context, rows)


def products_s(
    device: Device,
    ops: OpGraph,
    linears: Iterable[Linear],
    option: LayerOption,
    measure: Measure,
    compute_dtype: ComputeDtype,
    engine: str,
) -> float:
    """Every product: those of `linears` at the option, others (routers, heads) at 16 bits, activations by roofline."""
    planned = {linear.name: linear for linear in linears}
    seconds = 0.0
    for op in ops.ops:
        if op.product is None:
            continue
        linear = _linear(op, planned)
        if linear is None:
            moved = measure(op.reads) + measure(op.writes)
            seconds += roofline_s(device, DTYPE[compute_dtype], measure(op.flops), moved)
        else:
            used = option.of(linear.part) if linear.name in planned else SIXTEEN
            rows = measure(op.product.count * op.product.rows) // linear.active_experts
            seconds += linear_latency_s(device, linear, used, rows, compute_dtype, engine)
    return seconds


def _linear(op: Op, planned: dict[str, Linear]) -> Linear | None:
    """The product as a linear; None for one of two activations."""
    if op.product is None or not op.weights or len(op.weights[0].shape) < 2:
        return None
    name = op.weights[0].name.removesuffix(".weight")
    if name in planned:
        return planned[name]
    outputs, inputs = op.product.columns(1, 1, 1), op.product.k(1, 1, 1)
    experts = op.weights[0].shape[0] if len(op.weights[0].shape) == 3 else 1
    return Linear(name, inputs, outputs, len(op.weights) > 1, "mlp", name, False, experts, op.experts_per_token or experts)


def attention_s(
    device: Device, ops: OpGraph, window: int | None, rows: int, tokens: int, context: int, compute_dtype: ComputeDtype
) -> float:
    """Scores and values for `rows` sequences of `tokens` new tokens that see `context` positions at the end."""
    seen = min(context, window or context)
    heads = [op.heads for op in ops.ops if op.heads is not None]
    return sum(_heads_s(device, found, rows, tokens, seen, compute_dtype) for found in heads)


def cache_s(
    device: Device, kind: LayerKind, engine: str, rows: int, tokens: int, context: int, compute_dtype: ComputeDtype
) -> float:
    """Seconds that attention takes longer with the layer's cache than with one of 16 bits; negative where it is faster.

    A cache that kernels read as it is moves fewer bytes; one that is dequantized first is read and written once more.
    """
    attention = kind.attention
    if attention.cached_at == "16":
        return 0.0
    seen = min(context, attention.window or context)
    if cache_support(engine, device.type, attention.cached_at).level == "native":
        heads = [op.heads for op in kind.ops.ops if op.heads is not None]
        shape = (rows, tokens, seen, compute_dtype)
        return sum(_heads_s(device, found, *shape, attention.cached_at) - _heads_s(device, found, *shape) for found in heads)
    moved = attention.kv_bytes_per_token + kind.with_cache("16").attention.kv_bytes_per_token
    return roofline_s(device, DTYPE[compute_dtype], 0, rows * seen * moved)


def _heads_s(
    device: Device, heads: Heads, rows: int, tokens: int, seen: int, compute_dtype: ComputeDtype, kept: CachePrecision = "16"
) -> float:
    from llmpq.costs.lookup import attention_seconds

    if compute_dtype != "float32" and tokens <= seen and heads.head_dim == heads.value_dim:
        counts = (heads.num_heads, heads.num_kv_heads, heads.head_dim)
        measured = attention_seconds(device.type, rows, tokens, seen, *counts, kept)
        if measured is not None:
            return measured / device.speed
    pairs = rows * tokens * (seen - min(tokens, seen) / 2)
    flops = 2 * pairs * heads.num_heads * (heads.head_dim + heads.value_dim)
    kv_bytes = Attention(heads.num_heads, heads.num_kv_heads, heads.head_dim, None, heads.value_dim, 0, kept).kv_bytes_per_token
    return attention_at_efficiency(device.type, DTYPE[compute_dtype], flops, rows * seen * kv_bytes) / device.speed


def streams_s(device: Device, ops: OpGraph, measure: Measure, compute_dtype: ComputeDtype) -> float:
    """Norms, element-wise chains, routing, cache writes: each reads its inputs and writes its results once, from memory.

    Chains that feed nothing else are one kernel, as engines and compilers make them; a launch costs nothing of its own (the
    overhead of a layer stands for all launches). Layout (transposition, repeated heads) is taken to happen inside kernels.
    """
    nbytes = sum(measure(op.reads) + measure(op.writes) for op in ops.ops if op.kind in STREAMED)
    gathered = sum(measure(op.writes) for op in ops.ops if op.kind == "gather")
    return roofline_s(device, DTYPE[compute_dtype], 0, nbytes + gathered)


def collectives_s(device: Device, ops: OpGraph, measure: Measure) -> float:
    """What the ranks of a group send each other; nothing on a single device, whose graph has no such ops."""
    return sum(
        collective_s(device, operation, measure(op.writes)) for op in ops.ops for operation in COLLECTIVES if op.kind == operation
    )
