"""Patterns: operators that are one operation written out (norms, attention, experts) or one kernel (element-wise chains)."""

from collections.abc import Iterator

from llmpq.frontend.op_draft import Draft, Node, Use, constant, kv_heads, oriented
from llmpq.op_graph import Heads, Product, Size

_CHAIN = ("elementwise", "view")


def merge_patterns(draft: Draft) -> None:
    """All patterns, in the order in which they uncover each other."""
    merge_experts(draft)
    merge_biases(draft)
    merge_written_out_attention(draft)
    merge_norms(draft)
    merge_chains(draft)


def merge_experts(draft: Draft) -> None:
    """Products with rows that were looked up in a 3-D parameter: every pair of token and expert has a matrix of its own."""
    for node in [node for node in draft.nodes if node.kind == "matmul"]:
        for looked_up, side in _lookups(draft, node):
            weight = looked_up.uses[0]
            if len(weight.seen.shape) == 3 and node.product is not None:
                left = Use(weight.value, weight.value, side.flipped)
                flat = oriented(node.product, *_sides(node, side, left), frozenset([weight.value]))
                product = Product(Size.of(1), flat.count * flat.rows, flat.columns, flat.k, flat.transposed)
                draft.merge([looked_up, node], "experts", product)
                break


def _lookups(draft: Draft, node: Node) -> Iterator[tuple[Node, Use]]:
    for use in node.uses[-2:]:
        producer = draft.producer(use)
        if producer is not None and (producer.kind == "gather" or _picks_one(draft, producer)):
            yield producer, use


def _picks_one(draft: Draft, node: Node) -> bool:
    """Whether it is a matrix of a parameter, as loops over experts take them out; one stands for all (Recorder)."""
    return node.operators == ("select",) and node.uses[0].value in draft.parameters


def _sides(node: Node, replaced: Use, by: Use) -> tuple[Use, Use]:
    left, right = (by if use is replaced else use for use in node.uses[-2:])
    return left, right


def merge_biases(draft: Draft) -> None:
    """A sum with a parameter (or with rows looked up in one) right behind a product."""
    for node in [node for node in draft.nodes if node.kind in ("matmul", "experts")]:
        user = draft.only_user(node)
        if user is None or user.operators not in (("add",), ("add_",)):
            continue
        others = [use for use in user.uses if use.value not in node.outputs]
        if len(others) == 1 and others[0].value in draft.parameters and _is_per_column(others[0], node):
            draft.merge([node, user], node.kind, node.product)
        elif len(others) == 1 and node.kind == "experts":
            looked_up = draft.producer(others[0])
            if looked_up is not None and looked_up.kind == "gather":
                draft.merge([looked_up, node, user], "experts", node.product)


def _is_per_column(use: Use, node: Node) -> bool:
    return node.product is not None and use.value.shape == (node.product.columns,)


def merge_written_out_attention(draft: Draft) -> None:
    """Product of two activations, ... softmax, ..., product with a third: attention, whatever stands between."""
    for node in [node for node in draft.nodes if node.operators in (("_softmax",), ("_safe_softmax",))]:
        above, scores = _reach(draft, node, up=True)
        below, values = _reach(draft, node, up=False)
        if len(scores) == 1 and len(values) == 1 and scores[0].product is not None and values[0].product is not None:
            inner, outer = scores[0].product, values[0].product
            num_heads, head_dim = (inner.count * inner.rows).per_token() or 0, constant(inner.k)
            keys = kv_heads(scores[0].uses[-1], head_dim, num_heads)
            heads = Heads(num_heads, keys, head_dim, constant(outer.columns), inner.columns)
            if heads.num_heads:
                draft.merge([scores[0], *above, node, *below, values[0]], "attention", heads=heads)


def _reach(draft: Draft, start: Node, *, up: bool) -> tuple[list[Node], list[Node]]:
    """(what lies between, products of activations met first) above or below a node."""
    between: list[Node] = []
    met: list[Node] = []
    queue = [start]
    for node in queue:
        found = [draft.producer(use) for use in node.uses] if up else draft.users(node)
        for other in dict.fromkeys(found):
            if other is None or other in between or other in met:
                continue
            if other.kind == "matmul":
                met.append(other)
            elif other.kind in _CHAIN and (not up or _depends_on_product(draft, other)):
                between.append(other)
                queue.append(other)
    return between, [node for node in met if not any(use.value in draft.parameters for use in node.uses)]


def _depends_on_product(draft: Draft, node: Node) -> bool:
    producers = [draft.producer(use) for use in node.uses]
    return any(
        found is not None and (found.kind == "matmul" or (found.kind in _CHAIN and _depends_on_product(draft, found)))
        for found in producers
    )


def merge_norms(draft: Draft) -> None:
    """x * rsqrt(mean(x^2) + eps), and the gain behind it; the gain behind a norm that torch has, too."""
    for node in [node for node in draft.nodes if node.operators in (("rsqrt",), ("pow",), ("sqrt",), ("reciprocal",))]:
        members = _root_mean_square(draft, node)
        if members:
            draft.merge(members, "norm")
    for norm in [node for node in draft.nodes if node.kind == "norm"]:
        _absorb_gain(draft, norm)


def _root_mean_square(draft: Draft, root: Node) -> list[Node]:
    """The nodes of a norm around its root; none when it is another root."""
    inner: list[Node] = []
    node: Node | None = root
    while node is not None and "mean" not in node.operators:
        inner.append(node)
        producers = [draft.producer(use) for use in node.uses]
        node = producers[0] if len(producers) == 1 and len(inner) < 5 else None
    if node is None:
        return []
    square = draft.producer(node.uses[0])
    if square is None or square.operators not in (("pow",), ("mul",), ("square",)):
        return []
    scale = draft.only_user(root)
    while scale is not None and scale.operators[0] in ("reciprocal", "clamp"):
        inner.append(scale)
        scale = draft.only_user(scale)
    if scale is None or scale.operators[0] not in ("mul", "div"):
        return []
    normalized = {use.value for use in scale.uses} & {use.value for use in square.uses}
    return [*inner, node, square, scale] if normalized else []


def _absorb_gain(draft: Draft, norm: Node) -> None:
    while True:
        user = draft.only_user(norm)
        if user is None or user.kind != "elementwise" or user.operators[0] not in ("mul", "add", "mul_", "add_"):
            return
        others = [use for use in user.uses if use.value not in norm.outputs]
        if not others or not all(map(draft.is_constant, others)):
            return
        behind = [node for use in others for node in draft.constants(use)]
        if any(draft.only_user(node) not in (user, *behind) for node in behind):
            return
        norm = draft.merge([norm, user, *behind], "norm")


def merge_chains(draft: Draft) -> None:
    """Element-wise ops and selections are one kernel with the op behind them, when nothing else reads their result."""
    for node in reversed(draft.nodes.copy()):
        if node not in draft.nodes or node.kind not in _CHAIN:
            continue
        user = draft.only_user(node)
        if user is not None and user.kind == "elementwise":
            draft.merge([node, user], "elementwise")
