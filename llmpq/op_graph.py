"""OpGraph: the operators of one layer (or of an end), with arithmetic and bytes as functions of tokens, context and batch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Counts = NDArray[np.int64]

Collective = Literal["all-reduce", "all-gather"]  # between the ranks of a tensor-parallel group
OpKind = Literal["matmul", "experts", "attention", "norm", "gather", "cache", "routing", "elementwise", "view", Collective]
Term = tuple[int, int, int, int]
_VARIABLES = ("batch", "tokens", "context")


@dataclass(frozen=True, slots=True)
class Size:
    """A polynomial in batch (sequences), tokens (new ones of each) and context (positions seen at the end, new ones too).

    terms: (coefficient, power of batch, of tokens, of context), highest powers first; no term: 0
    """

    terms: tuple[Term, ...] = ()

    @staticmethod
    def of(coefficient: int, batch: int = 0, tokens: int = 0, context: int = 0) -> "Size":
        """coefficient * batch^.. * tokens^.. * context^.."""
        return Size(((coefficient, batch, tokens, context),)) if coefficient else Size()

    @staticmethod
    def sum(terms: Iterable[Term]) -> "Size":
        """The polynomial of these terms, like ones added up."""
        added: dict[tuple[int, int, int], int] = {}
        for coefficient, *powers in terms:
            key = (powers[0], powers[1], powers[2])
            added[key] = added.get(key, 0) + coefficient
        return Size(tuple((coefficient, *powers) for powers, coefficient in sorted(added.items(), reverse=True) if coefficient))

    def __call__(self, tokens: int, context: int, batch: int) -> int:
        return sum(c * batch**b * tokens**t * context**s for c, b, t, s in self.terms)

    def at(self, tokens: "Counts", context: "Counts", batch: "Counts") -> "Counts":
        """Its values at whole numbers [...] that broadcast."""
        zero = 0 * (tokens + context + batch)
        return zero + sum(c * batch**b * tokens**t * context**s for c, b, t, s in self.terms)

    def __add__(self, other: "Size") -> "Size":
        return Size.sum((*self.terms, *other.terms))

    def __mul__(self, other: "Size | int") -> "Size":
        factor = Size.of(other) if isinstance(other, int) else other
        return Size.sum((c * d, b + e, t + u, s + v) for c, b, t, s in self.terms for d, e, u, v in factor.terms)

    def per_token(self) -> int | None:
        """n where the size is n * batch * tokens, else None."""
        return self.terms[0][0] if len(self.terms) == 1 and self.terms[0][1:] == (1, 1, 0) else None

    def __str__(self) -> str:
        return " + ".join(map(_format_term, self.terms)) or "0"


def _format_term(term: Term) -> str:
    coefficient, *powers = term
    factors = [name if power == 1 else f"{name}^{power}" for name, power in zip(_VARIABLES, powers) if power]
    return " ".join([str(coefficient), *factors] if coefficient != 1 or not factors else factors)


@dataclass(frozen=True, slots=True)
class Product:
    """`count` matrix products [rows, k] x [k, columns]; with a parameter, `transposed` when it is stored [k, columns]."""

    count: Size
    rows: Size
    columns: Size
    k: Size
    transposed: bool = False

    @property
    def flops(self) -> Size:
        return self.count * self.rows * self.columns * self.k * 2


@dataclass(frozen=True, slots=True)
class Heads:
    """Scores and values of one attention: `num_heads` queries of `head_dim` a token against `keys` positions."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    keys: Size

    @property
    def flops(self) -> Size:
        """Of every query with every key, as torch.utils.flop_counter counts them: a causal kernel skips up to half."""
        return Size.of(2 * self.num_heads * (self.head_dim + self.value_dim), batch=1, tokens=1) * self.keys


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter that an op reads: name, shape, and the bytes of one element."""

    name: str
    shape: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        size = self.itemsize
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True, slots=True)
class Op:
    """One operator, or several that one kernel runs.

    inputs:  values it reads: `hidden`, another input of the graph, the name of an op, or NAME.1, … for its further results
    weights: parameters it reads
    detail:  the aten operators it stands for, in order
    reads, writes: bytes of activations, every input read once and every result written once
    product: of matmul and experts (the rows of `product` then count every pair of token and expert); heads: of attention
    """

    name: str
    kind: OpKind
    detail: str
    inputs: tuple[str, ...]
    weights: tuple[Weight, ...]
    reads: Size
    writes: Size
    product: Product | None = None
    heads: Heads | None = None

    @property
    def flops(self) -> Size:
        """Of products and attention; element-wise arithmetic is never the bound and counts as bytes only."""
        if self.heads is not None:
            return self.heads.flops
        return self.product.flops if self.product is not None else Size()

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    @property
    def experts_per_token(self) -> int:
        """How many experts work on each token; 0 of an op without experts."""
        rows = self.product.rows.per_token() if self.kind == "experts" and self.product is not None else None
        return rows or 0

    def weight_reads(self, tokens: int, context: int, batch: int) -> float:
        """Bytes of parameters that are read: of a gather the rows it returns, of experts those expected to be touched."""
        if self.kind == "gather":
            return min(float(self.writes(tokens, context, batch)), float(self.weight_bytes))
        if self.kind != "experts":
            return float(self.weight_bytes)
        experts = self.weights[0].shape[0]
        return self.weight_bytes / experts * distinct_experts(experts, self.experts_per_token, batch * tokens)


def distinct_experts(experts: int, active: int, tokens: int) -> float:
    """Expected number of different experts that `tokens` tokens reach, each choosing `active` of them at random.

    experts * (1 - (1 - active / experts)^tokens): a token misses one expert with probability 1 - active / experts,
    independently of the others. Real routers are less even, so this is the upper end.
    """
    return experts * (1 - (1 - active / experts) ** tokens)


@dataclass(frozen=True, slots=True)
class OpGraph:
    """Operators in an order in which they can run, `outputs` the values that others read.

    inputs: what comes from outside, `hidden` first, then what all layers share (mask, positions, rotary values)
    """

    inputs: tuple[str, ...] = ()
    ops: tuple[Op, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def flops(self) -> Size:
        return Size.sum(term for op in self.ops for term in op.flops.terms)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every parameter once, in the order of first use."""
        return tuple({weight.name: weight for op in self.ops for weight in op.weights}.values())

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    def traffic(self, chosen: Callable[[Op], bool] = lambda op: True) -> Size:
        """Bytes of activations that the chosen ops read and write."""
        return Size.sum(term for op in self.ops if chosen(op) for term in (*op.reads.terms, *op.writes.terms))

    def consumers(self, value: str) -> tuple[Op, ...]:
        return tuple(op for op in self.ops if value in op.inputs)

    def producer(self, value: str) -> Op | None:
        """The op whose result `value` is; None for an input of the graph."""
        name = value.partition(".")[0]
        return next((op for op in self.ops if op.name == name), None)


NO_OPS = OpGraph()
