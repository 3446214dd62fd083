"""Live bytes: the most that tensors hold at once inside a stage of our own runtime, which calls transformers' modules eagerly.

Of a module that keeps its local variables to its end: its input, what it adds to, its norm, and the outputs of its linears.
tests/test_live_bytes.py counts tensors operation by operation beside this. Plans still charge llmpq.costs.memory.
"""

from collections.abc import Iterable, Iterator

from llmpq.graph import FLOAT_BYTES, Attention, LayerGraph, LayerKind, Linear
from llmpq.layer_option import LayerOption
from llmpq.precision import Precision

WIDE = 4  # bytes of an element in fp32
CODE = 1  # bytes of an activation rounded to 8 bits
MASK_BYTES = 1
INDEX_BYTES = 16  # of a token: its id and its position, int64
CHAIN = 2  # more copies that an activation function without a gate makes of its input, where it is a chain of operations
ROTATED = 3  # copies of the queries while they are rotated: both products and their sum, or one of them not yet made


def stage_bytes(
    graph: LayerGraph,
    layers: Iterable[tuple[LayerKind, LayerOption]],
    shape: tuple[int, int, int],
    in_place: bool,
    is_first: bool,
) -> int:
    """Bytes beside weights, cache and logits of a stage with such layers, in any number.

    shape: sequences, new tokens of each, context; in_place: see `unpacked_bytes`; other stages than the first keep what they got
    """
    rows, tokens, context = shape
    distinct = tuple(dict.fromkeys(layers))
    widest = max(layer_bytes(graph, kind, rows, tokens, context, option) for kind, option in distinct)
    sent = 0 if is_first else rows * tokens * graph.hidden_size * FLOAT_BYTES
    return widest + sent + unpacked_bytes(distinct, in_place)


def layer_bytes(graph: LayerGraph, kind: LayerKind, rows: int, tokens: int, context: int, option: LayerOption) -> int:
    """Bytes inside one layer for `rows` sequences of `tokens` new tokens, at the option, what it is given included."""
    hidden, attention = FLOAT_BYTES * graph.hidden_size, kind.attention
    queries = FLOAT_BYTES * attention.num_heads * attention.head_dim
    keys = FLOAT_BYTES * attention.num_kv_heads * (attention.head_dim + attention.value_dim)
    attends = [linear for linear in kind.linears if linear.part == "attention"]
    inside = max(
        2 * hidden + 2 * WIDE * graph.hidden_size,  # a norm computes in fp32
        2 * hidden + 2 * (queries + keys) + max(ROTATED * queries, _widest(attends, option), _rounding(attention)),
        hidden + _mlp_bytes(kind, option),
    )
    rotary = 2 * FLOAT_BYTES * attention.head_dim
    cached = 0 if attention.cached_at == "16" else rows * context * keys  # what attention sees of a rounded cache
    return cached + rows * tokens * (2 * hidden + inside + rotary + INDEX_BYTES + context * MASK_BYTES)


def _rounding(attention: Attention) -> int:
    """Of a token: keys or values that are rounded: wide, divided, and as codes."""
    if attention.cached_at == "16":
        return 0
    return (2 * WIDE + CODE) * attention.num_kv_heads * max(attention.head_dim, attention.value_dim)


def _mlp_bytes(kind: LayerKind, option: LayerOption) -> int:
    """Of a token: every output that is not the last, and what the activation function makes of one; or a linear at work."""
    linears = [linear for linear in kind.linears if linear.part == "mlp"]
    outputs = [linear.out_features * linear.active_experts * FLOAT_BYTES for linear in linears]
    is_gated = len({linear.fusion_group for linear in linears}) < len(linears)
    copies = 1 if is_gated else 1 + CHAIN
    made = sum(outputs) - (min(outputs) if len(outputs) > 1 else 0) + copies * max(outputs, default=0)
    last = max((FLOAT_BYTES * linear.in_features * linear.active_experts for linear in linears), default=0)
    return max(made, last + _widest(linears, option))


def _widest(linears: Iterable[Linear], option: LayerOption) -> int:
    """Of a token: what a linear needs beside its input and its output, the most of these."""
    return max((_beside(linear, option.of(linear.part)) for linear in linears), default=0)


def _beside(linear: Linear, precision: Precision) -> int:
    """Activations that are rounded: wide, divided, and as codes; then the product, wide, with the output that it becomes."""
    if precision.activation_bits >= 16 or not linear.is_quantizable:
        return 0
    rounding = (2 * WIDE + CODE) * linear.in_features
    product = (WIDE + CODE) * linear.in_features + (WIDE + FLOAT_BYTES) * linear.out_features
    return linear.active_experts * max(rounding, product)


def unpacked_bytes(layers: Iterable[tuple[LayerKind, LayerOption]], in_place: bool) -> int:
    """The largest weight of these layers while it is unpacked.

    in_place: into the buffer that the packed kernels of CPUs keep; else its codes go through a wider type.
    """
    each = FLOAT_BYTES if in_place else FLOAT_BYTES + WIDE
    return max((each * size for kind, option in layers for size in _unpacked(kind, option)), default=0)


def _unpacked(kind: LayerKind, option: LayerOption) -> Iterator[int]:
    """Elements of the weights that are unpacked: those of weight-only precisions."""
    for linear in kind.linears:
        precision = option.of(linear.part)
        if linear.is_quantizable and precision.is_quantized and precision.activation_bits >= 16:
            yield linear.in_features * linear.out_features
