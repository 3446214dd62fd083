"""Emission: a rewritten draft as an OpGraph, with the bytes that each op moves when everything merged is one kernel."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from llmpq.frontend.op_draft import Draft, Node, Use, smaller
from llmpq.frontend.op_recording import Value
from llmpq.op_graph import Op, OpGraph, OpKind, Size, Weight

_FREE: tuple[OpKind, ...] = ("view",)


def op_graph(draft: Draft, names: Mapping[Value, str], rename: Callable[[str], str] = str) -> OpGraph:
    """`names` of parameters and of tensors that come from outside, shortened by `rename`."""
    emitter = _Emitter(draft, {value: rename(name) for value, name in names.items()})
    ops = tuple(map(emitter.op, draft.nodes))
    outputs = tuple(dict.fromkeys(emitter.name(value) for value in draft.results))
    return OpGraph(tuple(emitter.inputs), ops, outputs)


class _Emitter:
    def __init__(self, draft: Draft, names: Mapping[Value, str]) -> None:
        self._draft = draft
        self._outside = names
        self._names = dict(_op_names(draft.nodes))
        self._read_as = _read_as(draft)
        self.inputs: dict[str, None] = {}

    def op(self, node: Node) -> Op:
        weights = sorted({use.value: use for use in node.uses if use.value in self._draft.parameters}.values(), key=_rank)
        reads = self._reads(node)
        return Op(
            name=self._names[node],
            kind=node.kind,
            detail=" ".join(node.operators),
            inputs=tuple(map(self.name, reads)),
            weights=tuple(self._weight(use, node) for use in weights),
            reads=Size.sum(term for size in reads.values() for term in size.terms) if node.kind not in _FREE else Size(),
            writes=self._writes(node),
            product=node.product,
            heads=node.heads,
        )

    def name(self, value: Value) -> str:
        node = self._draft.producers.get(value)
        if node is not None:
            place = node.outputs.index(value)
            return f"{self._names[node]}.{place}" if place else self._names[node]
        name = self._outside.get(value, "constant")
        self.inputs.setdefault(name)
        return name

    def _weight(self, use: Use, node: Node) -> Weight:
        """Experts whose matrices are kept one below the other are seen as [experts, rows, columns]."""
        shape = use.seen.shape if node.kind == "experts" and len(use.seen.shape) == 3 else use.value.shape
        return Weight(self._outside[use.value], tuple(extent(1, 1, 1) for extent in shape), use.value.itemsize)

    def _reads(self, node: Node) -> dict[Value, Size]:
        """Bytes by value from outside: what is seen of it, at most all of it."""
        seen: dict[Value, dict[Value, Size]] = {}
        for value, use in _external_reads(node):
            if value not in self._draft.parameters:
                seen.setdefault(value, {}).setdefault(use.seen, use.numel)
        return {
            value: smaller(Size.sum(term for size in sizes.values() for term in size.terms), value.numel) * self._itemsize(value)
            for value, sizes in seen.items()
        }

    def _writes(self, node: Node) -> Size:
        if node.kind in _FREE:
            return Size()
        if node.kind == "cache":
            return node.uses[0].numel * node.uses[0].value.itemsize
        read = [value for value in node.outputs if value in self._draft.consumers or value in self._draft.results]
        return Size.sum(term for value in read for term in (value.numel * self._itemsize(value)).terms)

    def _itemsize(self, value: Value) -> int:
        """A cast belongs to the op that makes the value: it is stored as it is read."""
        return min(value.itemsize, self._read_as.get(value, value.itemsize))


def _rank(use: Use) -> int:
    """Matrices before their biases."""
    return -len(use.value.shape)


def _read_as(draft: Draft) -> dict[Value, int]:
    widest: dict[Value, int] = {}
    for node in draft.nodes:
        for value, use in _external_reads(node):
            widest[value] = max(widest.get(value, 0), use.seen.itemsize)
    return widest


def _external_reads(node: Node) -> Iterator[tuple[Value, Use]]:
    """(what is read from outside the op, as what) of everything in it that computes; selections read nothing themselves."""
    members = node.members or (node,)
    made = {value: member for member in members for value in member.outputs}
    for member in members:
        if member.kind == "view" and len(members) > 1:
            continue
        for use in member.uses:
            value = use.value
            while value in made and made[value].kind == "view":
                value = made[value].uses[0].value
            if value not in made:
                yield value, use


def _op_names(nodes: Iterable[Node]) -> Iterator[tuple[Node, str]]:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.kind] = counts.get(node.kind, 0) + 1
        yield node, f"{node.kind}_{counts[node.kind]}"
