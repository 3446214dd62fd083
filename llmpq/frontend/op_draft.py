"""Draft: recorded operators as a graph that can still be rewritten, layout operators resolved to the tensors they show."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmpq.frontend.op_recording import HINTS, Record, Value
from llmpq.op_graph import Heads, OpKind, Product, Size

LAYOUT = frozenset(
    """
    view _unsafe_view reshape _reshape_alias t transpose permute unsqueeze squeeze expand clone contiguous alias detach
    _to_copy lift_fresh lift_fresh_copy native_dropout dropout movedim flatten unflatten
    """.split()  # noqa: SIM905
)
SELECTION = frozenset(
    """
    slice select split split_with_sizes chunk unbind narrow diagonal unfold tensor_split
    """.split()  # noqa: SIM905
)
PRODUCTS = frozenset(["mm", "bmm", "addmm", "baddbmm"])
NORMS = frozenset(["native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm"])
ROUTING = frozenset(
    """
    topk sort argsort one_hot scatter scatter_ scatter_add scatter_add_ index_put index_put_ index_add index_add_ index
    gather index_select cumsum histc bincount searchsorted argmax argmin repeat_interleave masked_select
    """.split()  # noqa: SIM905
)
LOOKUPS = frozenset(["embedding", "index", "index_select", "gather"])


@dataclass(frozen=True, slots=True)
class Use:
    """A tensor as an op reads it: the tensor that was made, the shape in which it is seen, an odd number of transpositions."""

    value: Value
    seen: Value
    flipped: bool = False

    @property
    def numel(self) -> Size:
        return smaller(self.value.numel, self.seen.numel)


@dataclass(slots=True, eq=False)
class Node:
    """One operator, or several that were merged."""

    kind: OpKind
    operators: tuple[str, ...]
    uses: tuple[Use, ...]
    outputs: tuple[Value, ...]
    product: Product | None = None
    heads: Heads | None = None
    members: "tuple[Node, ...]" = ()


@dataclass(slots=True)
class Draft:
    """Nodes in order of execution; `results` are the values that must survive, `parameters` those that come from a checkpoint."""

    nodes: list[Node]
    results: tuple[Value, ...]
    parameters: frozenset[Value]
    producers: dict[Value, Node] = field(default_factory=dict)
    consumers: dict[Value, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._index()

    def _index(self) -> None:
        self.producers = {value: node for node in self.nodes for value in node.outputs}
        self.consumers = {}
        for node in self.nodes:
            for value in dict.fromkeys(use.value for use in node.uses):
                self.consumers.setdefault(value, []).append(node)

    def producer(self, use: Use) -> Node | None:
        return self.producers.get(use.value)

    def users(self, node: Node) -> list[Node]:
        return list(dict.fromkeys(user for value in node.outputs for user in self.consumers.get(value, ())))

    def only_user(self, node: Node) -> Node | None:
        """The one op that reads the node's results; None when there are several, or the result leaves the graph."""
        users = self.users(node)
        return users[0] if len(users) == 1 and not set(node.outputs) & set(self.results) else None

    def merge(self, members: Sequence[Node], kind: OpKind, product: Product | None = None, heads: Heads | None = None) -> Node:
        """Put one node where the last of `members` stands; what only they read of each other disappears."""
        ordered = sorted(members, key=self.nodes.index)
        made = {value for node in ordered for value in node.outputs}
        inside = set(ordered)
        outputs = tuple(
            value
            for node in ordered
            for value in node.outputs
            if value in self.results or any(user not in inside for user in self.consumers.get(value, ()))
        )
        merged = Node(
            kind,
            tuple(name for node in ordered for name in node.operators),
            tuple(use for node in ordered for use in node.uses if use.value not in made),
            outputs,
            product,
            heads,
            tuple(part for node in ordered for part in (node.members or (node,))),
        )
        self.nodes[self.nodes.index(ordered[-1])] = merged
        self.nodes = [node for node in self.nodes if node not in inside]
        self._index()
        return merged

    def is_constant(self, use: Use) -> bool:
        """Whether a value depends on parameters and numbers alone."""
        if use.value in self.parameters:
            return True
        node = self.producers.get(use.value)
        return node is not None and all(map(self.is_constant, node.uses))

    def constants(self, use: Use) -> list[Node]:
        """The nodes behind a constant value."""
        node = self.producers.get(use.value)
        return [] if node is None else [node, *(found for inner in node.uses for found in self.constants(inner))]


def draft(records: Iterable[Record], results: Iterable[Value], parameters: frozenset[Value]) -> Draft:
    """The graph of what was recorded and is needed for `results` (or for what is written to the cache)."""
    shown: dict[Value, Use] = {}

    def use(value: Value) -> Use:
        found = shown.get(value)
        return Use(value, value) if found is None else Use(found.value, value, found.flipped)

    nodes: list[Node] = []
    for record in records:
        uses = tuple(map(use, record.inputs))
        if record.outputs and all(not value.numel.terms for value in record.outputs):
            continue  # nothing to compute: experts beside the one that stands for all
        if _is_layout(record):
            before = uses[0]
            shown[record.outputs[0]] = Use(before.value, record.outputs[0], before.flipped ^ _flips(record))
        elif record.outputs:
            nodes.append(_node(record, uses, parameters))
    wanted = tuple(dict.fromkeys(use(value).value for value in results))
    return Draft(_live(nodes, wanted), wanted, parameters)


def smaller(left: Size, right: Size) -> Size:
    """The one that is smaller at the sizes that were used as hints."""
    batch, tokens, past = HINTS
    return min(left, right, key=lambda size: size(tokens, past + tokens, batch))


def _live(nodes: list[Node], results: tuple[Value, ...]) -> list[Node]:
    needed, live = set(results), []
    for node in reversed(nodes):
        if node.kind == "cache" or needed.intersection(node.outputs):
            needed.update(use.value for use in node.uses)
            live.append(node)
    return live[::-1]


def _is_layout(record: Record) -> bool:
    if record.operator in LAYOUT:
        return len(record.inputs) > 0
    same = len(record.outputs) == 1 and len(record.inputs) == 1 and record.inputs[0].shape == record.outputs[0].shape
    return same and record.operator in ("slice", "narrow")


def _flips(record: Record) -> bool:
    """Whether the last two dimensions change places."""
    rank = len(record.inputs[0].shape)
    if record.operator == "t":
        return rank == 2
    if record.operator == "transpose":
        return {int(dim) % rank for dim in record.arguments[1:3]} == {rank - 1, rank - 2}
    if record.operator == "permute":
        return [int(dim) % rank for dim in record.arguments[1][-2:]] == [rank - 1, rank - 2]
    return False


def _node(record: Record, uses: tuple[Use, ...], parameters: frozenset[Value]) -> Node:
    kind = _kind(record, uses, parameters)
    product = _product(record.operator, uses, parameters) if kind == "matmul" else None
    heads = whole_attention(uses) if kind == "attention" else None
    return Node(kind, (record.operator,), uses, record.outputs, product, heads)


def _kind(record: Record, uses: tuple[Use, ...], parameters: frozenset[Value]) -> OpKind:
    name = record.operator
    if name in PRODUCTS:
        return "matmul"
    if name == "scaled_dot_product_attention":
        return "attention"
    if name == "cache_update":
        return "cache"
    if name in LOOKUPS and uses and uses[0].value in parameters:
        return "gather"
    kinds: dict[OpKind, frozenset[str]] = {"norm": NORMS, "routing": ROUTING, "view": SELECTION}
    return next((kind for kind, names in kinds.items() if name in names), "elementwise")


def _product(operator: str, uses: tuple[Use, ...], parameters: frozenset[Value]) -> Product:
    left, right = uses[-2:]
    *batch, rows, k = left.seen.shape
    columns = right.seen.shape[-1]
    count = batch[0] if batch else Size.of(1)
    return oriented(Product(count, rows, columns, k), left, right, parameters)


def oriented(product: Product, left: Use, right: Use, parameters: frozenset[Value]) -> Product:
    """The same product with activations as rows, and whether the parameter is stored [in, out]."""
    if left.value in parameters:
        return Product(product.count, product.columns, product.rows, product.k, transposed=left.flipped)
    if right.value in parameters:
        return Product(product.count, product.rows, product.columns, product.k, transposed=not right.flipped)
    return product


def whole_attention(uses: tuple[Use, ...]) -> Heads:
    query, key, value = uses[:3]
    heads, head_dim, value_dim = (constant(size) for size in (query.seen.shape[-3], query.seen.shape[-1], value.seen.shape[-1]))
    return Heads(heads, kv_heads(key, head_dim, heads), head_dim, value_dim, key.seen.shape[-2])


def kv_heads(key: Use, head_dim: int, num_heads: int) -> int:
    """Heads of the keys before they were repeated for the queries."""
    terms = key.numel.terms
    return terms[0][0] // head_dim if len(terms) == 1 else num_heads


def constant(size: Size) -> int:
    """The size, when it is a number: heads, features."""
    return size(1, 1, 1)
