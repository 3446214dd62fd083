"""Shard: what one rank of a tensor-parallel group holds and computes of a model, as a LayerGraph of its own."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from llmpq.graph import LayerGraph, LayerKind, Linear, Parameter
from llmpq.hardware.cluster import Device
from llmpq.op_graph import Collective, Heads, Op, OpGraph, Product, Size, Weight

VOCABULARY_PADDING = 64  # rows that vLLM rounds a split vocabulary up to (vllm 0.32, vocab_parallel_embedding.py)


def ranks_of(devices: Iterable[Device]) -> int:
    """The ranks of each of these devices: 1, or those of groups, which are all alike."""
    (ranks,) = {device.ranks for device in devices}
    return ranks


def unsplittable(graph: LayerGraph, ranks: int) -> str | None:
    """Why the model cannot be split among so many ranks; None when it can."""
    for kind in graph.kinds:
        attention = kind.attention
        if attention.value_head_dim is not None or attention.index_dim or any(linear.experts > 1 for linear in kind.linears):
            return f"{kind.name} has latent attention or experts stored as one tensor, whose split is not known"
        if not attention.num_kv_heads or attention.num_heads % ranks or attention.num_kv_heads % ranks:
            found = f"{attention.num_heads} heads and {attention.num_kv_heads} for keys and values"
            return f"{kind.name} has {found}; both must be multiples of {ranks}"
        split = _split(kind)
        if split is None:
            return f"{kind.name} hands on what is split among ranks other than through a linear"
        odd = next((linear for linear in kind.linears if _width(linear, split) % ranks), None)
        if odd is not None:
            return f"{odd.name} of {kind.name} is {_width(odd, split)} wide on the side that is split, no multiple of {ranks}"
    return None


@lru_cache(maxsize=64)
def shard(graph: LayerGraph, ranks: int) -> LayerGraph:
    """One rank's part of a model that `unsplittable` has nothing against: itself for one rank.

    Linears that read what every rank has are split by rows, those that read what is split by columns, and their results are
    summed over all ranks: `all-reduce` ops, written for every element. Norms and their kind are on every rank; vocabularies are
    split by rows, and logits gathered.
    """
    if ranks == 1:
        return graph
    tables = {parameter.name for parameter in (*graph.first, *graph.last) if _is_table(parameter, graph.vocab_size)}
    return replace(
        graph,
        kinds=tuple(_shard_of_kind(kind, ranks) for kind in graph.kinds),
        first=tuple(_rows_split(parameter, ranks, tables) for parameter in graph.first),
        last=tuple(_rows_split(parameter, ranks, tables) for parameter in graph.last),
        first_ops=_split_ends(graph.first_ops, ranks, tables),
        last_ops=_split_ends(graph.last_ops, ranks, tables),
    )


@dataclass(frozen=True, slots=True)
class _Split:
    """Linears split by their columns, and the ops that work on a part of what they would alone."""

    by_columns: frozenset[str]
    partial: frozenset[str]


def _split(kind: LayerKind) -> _Split | None:
    """Which is which, from what every value is made of; None where a part of something leaves the layer, or ops are not known."""
    planned = {linear.name for linear in kind.linears}
    partial: set[str] = set()
    by_columns: set[str] = set()
    met: set[str] = set()
    for op in kind.ops.ops:
        reads_part = any(value.partition(".")[0] in partial for value in op.inputs)
        name = _linear_of(op, planned)
        met |= {name} if name is not None else set()
        if name is None and reads_part:
            partial.add(op.name)
        elif name is not None and reads_part:
            by_columns.add(name)
        elif name is not None:
            partial.add(op.name)
    leaves = any(value.partition(".")[0] in partial for value in kind.ops.outputs)
    return None if leaves or met < planned else _Split(frozenset(by_columns), frozenset(partial))


def _linear_of(op: Op, planned: set[str]) -> str | None:
    """The linear of the layer that the op multiplies with."""
    name = op.weights[0].name.removesuffix(".weight") if op.product is not None and op.weights else ""
    return name if name in planned else None


def _width(linear: Linear, split: _Split) -> int:
    return linear.in_features if linear.name in split.by_columns else linear.out_features


def _shard_of_kind(kind: LayerKind, ranks: int) -> LayerKind:
    split, attention = _split(kind), kind.attention
    assert split is not None, "asked for with `unsplittable` before"
    heads = replace(attention, num_heads=attention.num_heads // ranks, num_kv_heads=attention.num_kv_heads // ranks)
    linears = tuple(_split_linear(linear, split, ranks) for linear in kind.linears)
    ops = tuple(done for op in kind.ops.ops for done in _split_op(op, split, {linear.name for linear in linears}, ranks))
    return replace(kind, linears=linears, attention=heads, ops=replace(kind.ops, ops=ops))


def _split_linear(linear: Linear, split: _Split, ranks: int) -> Linear:
    """The bias of a linear that is split by columns is on every rank."""
    if linear.name in split.by_columns:
        return replace(linear, in_features=linear.in_features // ranks, column_ranks=ranks)
    return replace(linear, out_features=linear.out_features // ranks)


def _split_op(op: Op, split: _Split, planned: set[str], ranks: int) -> tuple[Op, ...]:
    """The op on one rank, and the all-reduce behind a product whose columns are split."""
    name = _linear_of(op, planned)
    if name is not None and name in split.by_columns:
        assert op.product is not None
        product = replace(op.product, k=_divided(op.product.k, ranks))
        own = replace(op, product=product, reads=_divided(op.reads, ranks), weights=_divided_weights(op, 1, ranks))
        return own, _collective(f"{op.name}_sum", "all-reduce", op)
    if op.name not in split.partial:
        return (op,)
    if name is not None:
        assert op.product is not None
        product = replace(op.product, columns=_divided(op.product.columns, ranks))
        return (replace(op, product=product, writes=_divided(op.writes, ranks), weights=_divided_weights(op, 0, ranks)),)
    return (
        replace(
            op,
            reads=_divided(op.reads, ranks),
            writes=_divided(op.writes, ranks),
            product=_fewer_products(op.product, ranks),
            heads=_fewer_heads(op.heads, ranks),
        ),
    )


def _divided_weights(op: Op, axis: int, ranks: int) -> tuple[Weight, ...]:
    """The matrix split along the side of its outputs (0) or of its inputs (1), its bias with the outputs."""
    assert op.product is not None
    matrix, *others = op.weights
    side = 1 - axis if op.product.transposed else axis
    shape = tuple(extent // ranks if place == side else extent for place, extent in enumerate(matrix.shape))
    biases = (replace(bias, shape=(bias.shape[0] // ranks,)) if axis == 0 and bias.shape else bias for bias in others)
    return (replace(matrix, shape=shape), *biases)


def _divided(size: Size, ranks: int) -> Size:
    """Rounded up term by term."""
    return Size(tuple((-(-coefficient // ranks), batch, tokens, context) for coefficient, batch, tokens, context in size.terms))


def _fewer_products(product: Product | None, ranks: int) -> Product | None:
    """Of two activations: one for each head, or so."""
    return None if product is None else replace(product, count=_divided(product.count, ranks))


def _fewer_heads(heads: Heads | None, ranks: int) -> Heads | None:
    if heads is None:
        return None
    return replace(heads, num_heads=heads.num_heads // ranks, num_kv_heads=heads.num_kv_heads // ranks)


def _collective(name: str, operation: Collective, behind: Op) -> Op:
    """Of everything that the op writes on one device."""
    return Op(name, operation, operation, (behind.name,), (), Size(), behind.writes)


def _is_table(parameter: Parameter, vocab_size: int) -> bool:
    return len(parameter.shape) == 2 and parameter.shape[0] == vocab_size


def _rows_split(parameter: Parameter, ranks: int, tables: set[str]) -> Parameter:
    if parameter.name not in tables:
        return parameter
    return replace(parameter, shape=(_rows(parameter.shape[0], ranks), *parameter.shape[1:]))


def _rows(vocabulary: int, ranks: int) -> int:
    return -(-vocabulary // VOCABULARY_PADDING) * VOCABULARY_PADDING // ranks


def _split_ends(ops: OpGraph, ranks: int, tables: set[str]) -> OpGraph:
    """Embeddings by vocabulary, summed over the ranks; logits by vocabulary, gathered."""
    return replace(ops, ops=tuple(done for op in ops.ops for done in _split_end(op, ranks, tables)))


def _split_end(op: Op, ranks: int, tables: set[str]) -> tuple[Op, ...]:
    if not op.weights or op.weights[0].name not in tables:
        return (op,)
    matrix = replace(op.weights[0], shape=(_rows(op.weights[0].shape[0], ranks), *op.weights[0].shape[1:]))
    own = replace(op, weights=(matrix, *op.weights[1:]))
    if op.product is None:
        return own, _collective(f"{op.name}_sum", "all-reduce", op)
    product = replace(op.product, columns=_divided(op.product.columns, ranks))
    return replace(own, product=product, writes=_divided(op.writes, ranks)), _collective(f"{op.name}_all", "all-gather", op)
