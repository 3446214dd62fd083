"""Live bytes: the most that tensors hold at once inside a stage of our own runtime, which calls transformers' modules eagerly.

Of a module that keeps its local variables to its end: its input, what it adds to, its norm, and the outputs of its linears.
tests/test_live_bytes.py counts tensors operation by operation beside this.
"""

from collections.abc import Iterable

from llmpq.graph import FLOAT_BYTES, Attention, LayerGraph, LayerKind, Linear
from llmpq.layer_option import LayerOption
from llmpq.op_graph import Heads, Op, Size
from llmpq.pieces import panel_rows, piece_rows, product_tokens
from llmpq.precision import SMALLEST_GROUP, Precision

WIDE = 4  # bytes of an element in fp32
CODE = 1  # bytes of an activation rounded to 8 bits
MASK_BYTES = 1
PADDING_BYTES = 10  # of a position of sequences that are not all as long: int64 and twice a bool
SCALE_BYTES = 12  # of an output of a linear that rounds activations: its scale in fp32, and a zero point, int64
WIDENING = 10  # of an element that becomes fp32 and something else again: twice in fp32, and in 16 bits
SCORE = 3 * FLOAT_BYTES + WIDE  # of a query and a key: the score, that with the mask, its softmax in fp32, and that rounded
INDEX_BYTES = 16  # of a token: its id and its position, int64
ROUTE_BYTES = 144  # of a token and an expert that works on it: where it goes, its weight, where it came from
ID_BYTES = 8  # int64: of an expert in the table of who works on what
CHAIN = 2  # more copies that an activation function makes of its input where it is a chain of operations
CHAINED = 5  # operations from which on it is one
_ACTIVATION = frozenset(("tanh", "sigmoid", "erf"))
ROTATED = 3  # copies of the queries while they are rotated: both products and their sum, or one of them not yet made

Shape = tuple[int, int, int]  # sequences, new tokens of each, context


def stage_bytes(
    graph: LayerGraph,
    layers: Iterable[tuple[LayerKind, LayerOption]],
    shape: Shape,
    in_place: bool,
    is_first: bool,
) -> int:
    """Bytes beside weights, cache and logits of a stage with such layers, in any number.

    in_place: see `weight_bytes`; other stages than the first keep what they got
    """
    distinct = tuple(dict.fromkeys(layers))
    inside = max(layer_bytes(graph, kind, shape, option, in_place) for kind, option in distinct)
    weight = max(weight_bytes(graph, kind, shape, option, in_place) for kind, option in distinct)
    return inside + weight + (0 if is_first else received_bytes(graph, shape))


def received_bytes(graph: LayerGraph, shape: Shape) -> int:
    """The hidden state that a stage was sent."""
    rows, tokens, _ = shape
    return rows * tokens * graph.hidden_size * FLOAT_BYTES


def layer_bytes(graph: LayerGraph, kind: LayerKind, shape: Shape, option: LayerOption, in_place: bool) -> int:
    """Bytes inside one layer at the option, what it is given included, no weight unpacked."""
    rows, tokens, _ = shape
    hidden, new = FLOAT_BYTES * graph.hidden_size, rows * tokens
    queries, keys = _projected(kind)
    attends = [linear for linear in kind.linears if linear.part == "attention"]
    rotated = max(ROTATED * queries, _widest(attends, option, in_place), _rounding(kind.attention))
    inside = max(
        new * (2 * hidden + 2 * WIDE * graph.hidden_size),  # a norm computes in fp32
        new * (2 * hidden + 2 * (queries + keys) + rotated) + _of_context(kind, shape, option, in_place),
        new * (hidden + _mlp_bytes(kind, option, hidden, in_place)),
    )
    return inside + 2 * new * hidden + _shared_bytes(graph, shape)


def _shared_bytes(graph: LayerGraph, shape: Shape) -> int:
    """What all layers of a stage read: ids and positions, and for each length of a window rotary values and a mask."""
    rows, tokens, context = shape
    windows = {kind.attention.window: kind.attention for kind in graph.kinds}.values()
    of_token = INDEX_BYTES + sum(2 * FLOAT_BYTES * attention.head_dim + context * MASK_BYTES for attention in windows)
    return rows * tokens * of_token + rows * context * PADDING_BYTES


def _projected(kind: LayerKind) -> tuple[int, int]:
    """Of a token: its queries; its keys and values."""
    attention = kind.attention
    found = [op.heads for op in kind.ops.ops if op.heads is not None] or [
        Heads(attention.num_heads, attention.num_kv_heads, attention.head_dim, attention.value_dim, Size())
    ]
    queries = max(heads.num_heads * heads.head_dim for heads in found)
    return FLOAT_BYTES * queries, FLOAT_BYTES * max(heads.num_kv_heads * (heads.head_dim + heads.value_dim) for heads in found)


def _of_context(kind: LayerKind, shape: Shape, option: LayerOption, in_place: bool) -> int:
    """What grows with the positions that are seen: a rounded cache as attention sees it, latent keys and values expanded, and
    where attention is no kernel of its own the scores, their softmax in fp32, and keys and values repeated for every head."""
    rows, tokens, context = shape
    expanded = sum(coefficient for op in kind.ops.ops for coefficient in _per_position(op))
    expanding = [linear for linear in kind.linears if _expands(kind, linear)]
    written_out = [op.heads for op in kind.ops.ops if op.heads is not None and "_softmax" in op.detail]
    scores = sum(heads.num_heads * (tokens * SCORE + FLOAT_BYTES * (heads.head_dim + heads.value_dim)) for heads in written_out)
    cached = 0 if kind.attention.cached_at == "16" else _projected(kind)[1]
    return rows * context * (cached + expanded + _widest(expanding, option, in_place) + scores)


def _rounding(attention: Attention) -> int:
    """Of a token: keys or values that are rounded for the cache: wide, divided, and as codes."""
    if attention.cached_at == "16":
        return 0
    return (2 * WIDE + CODE) * attention.num_kv_heads * max(attention.head_dim, attention.value_dim)


def _per_position(op: Op) -> list[int]:
    """Bytes that a product, or what follows it, makes of every position that is seen."""
    written = op.writes.terms if op.kind in ("matmul", "elementwise") else ()
    return [coefficient for coefficient, _, of_tokens, of_context in written if of_context and not of_tokens]


def _expands(kind: LayerKind, linear: Linear) -> bool:
    """Whether a linear works on every position that is seen, not on new tokens alone."""
    return any(_per_position(op) for op in kind.ops.ops if op.weights and op.weights[0].name == f"{linear.name}.weight")


def _mlp_bytes(kind: LayerKind, option: LayerOption, hidden: int, in_place: bool) -> int:
    """Of a token: every output that is not the last, and what the activation function makes of one; or a linear at work; and
    what is gathered for experts, and goes back."""
    linears = [linear for linear in kind.linears if linear.part == "mlp"]
    outputs = [linear.out_features * linear.active_experts * FLOAT_BYTES for linear in linears]
    largest = max(outputs, default=0)
    made = sum(outputs) - (min(outputs) if len(outputs) > 1 else 0) + largest
    if _has_chain(kind):
        made += CHAIN * largest + hidden + (largest if any(linear.experts > 1 for linear in linears) else 0)
    last = max((FLOAT_BYTES * linear.in_features * linear.active_experts for linear in linears), default=0)
    experts = (linear for linear in linears if linear.experts > 1)
    routed = (linear.active_experts * (2 * hidden + ROUTE_BYTES + ID_BYTES * linear.experts) for linear in experts)
    return max(routed, default=0) + max(made, last + _widest(linears, option, in_place))


def _has_chain(kind: LayerKind) -> bool:
    """Whether an activation function is written out, operation by operation."""
    chains = (op.detail.split() for op in kind.ops.ops if op.kind == "elementwise")
    return any(len(chain) >= CHAINED and not _ACTIVATION.isdisjoint(chain) for chain in chains)


def _widest(linears: Iterable[Linear], option: LayerOption, in_place: bool) -> int:
    """Of a token: what a linear needs beside its input and its output, the most of these."""
    return max((_beside(linear, option.of(linear.part), in_place) for linear in linears), default=0)


def _beside(linear: Linear, precision: Precision, in_place: bool) -> int:
    """Activations as they were rounded, and the output; on cards wide, divided, and as codes; then the product, wide, with the
    output that it becomes."""
    if precision.activation_bits >= 16 or not linear.is_quantizable:
        return 0
    if in_place:
        return linear.active_experts * FLOAT_BYTES * (linear.in_features + linear.out_features)
    rounding = (2 * WIDE + CODE) * linear.in_features
    product = (WIDE + CODE) * linear.in_features + (WIDE + FLOAT_BYTES) * linear.out_features
    return linear.active_experts * max(rounding, product)


def weight_bytes(graph: LayerGraph, kind: LayerKind, shape: Shape, option: LayerOption, in_place: bool) -> int:
    """By how much more a layer needs for the weights that a linear makes of its codes, one linear at a time.

    in_place: on CPUs a part of it is unpacked or widened at a time (llmpq.pieces); the kernels of some need less, of none more.
    Else every weight that is multiplied is widened first, and goes when its product is there
    """
    rows, tokens, context = shape
    kept, beside, around = 0, 0, 0
    for linear in kind.linears:
        precision = option.of(linear.part)
        if not linear.is_quantizable or not precision.is_quantized:
            continue
        positions = rows * (context if _expands(kind, linear) else tokens)
        if in_place:
            kept = max(kept, FLOAT_BYTES * _panel(linear) * linear.in_features)
            beside = max(beside, _beside_panel(linear, precision, positions))
        else:
            around = max(around, _passing(linear, precision, positions) + _at_work(graph, linear, positions))
    return max(
        kept + beside, around + _shared_bytes(graph, shape) - layer_bytes(graph, kind, shape, option, in_place) if around else 0
    )


def _panel(linear: Linear) -> int:
    """Rows of a weight, or of one of its pieces, that are in the buffer that a stage keeps."""
    return panel_rows(linear.out_features // max(1, len(linear.pieces)), linear.in_features)


def _beside_panel(linear: Linear, precision: Precision, positions: int) -> int:
    """The product of the panel where the weight has more rows, or what is wide meanwhile."""
    rows, panel = linear.out_features // max(1, len(linear.pieces)), _panel(linear)
    product = FLOAT_BYTES * positions * panel if panel < rows else 0
    widened = [piece_rows(panel, linear.in_features)]
    if precision.activation_bits < 16:
        widened.append(piece_rows(positions, linear.in_features))
        product = max(product, (WIDE * min(positions, product_tokens(rows)) + SCALE_BYTES) * rows)
    return max(product, WIDENING * max(widened) * linear.in_features)


def _at_work(graph: LayerGraph, linear: Linear, positions: int) -> int:
    """What lives beside the weight while a linear is multiplied, at most: three times its input, and twice its output and what
    it adds to."""
    features = 2 * graph.hidden_size + (3 * linear.in_features + 2 * linear.out_features) * linear.active_experts
    return FLOAT_BYTES * features * positions


def _passing(linear: Linear, precision: Precision, positions: int) -> int:
    """A weight in fp32 and as it is multiplied, with its codes where they were packed; or before that activations as they are
    rounded, three times in fp32."""
    weight = linear.in_features * linear.out_features // max(1, len(linear.pieces))
    scales = WIDE * weight // SMALLEST_GROUP
    if precision.activation_bits >= 16:
        return (WIDE + FLOAT_BYTES + CODE) * weight + scales
    return max((WIDE + FLOAT_BYTES) * weight + scales, 3 * WIDE * positions * linear.in_features)
