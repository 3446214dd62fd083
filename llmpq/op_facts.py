"""Facts by dataflow: what an OpGraph says of its linears, experts, norms and cache, whatever the modules are called."""

from collections.abc import Callable
from dataclasses import dataclass

from llmpq.op_graph import Op, OpGraph
from llmpq.precision import Part

_DECIDING = frozenset(("topk", "sort", "argsort", "argmax"))
_PRODUCTS = ("matmul", "experts")


@dataclass(frozen=True, slots=True)
class NormEdge:
    """A norm that nothing but these linears reads: its gain can take over a factor per channel from them (smoothing)."""

    norm: str
    gain: str
    linears: tuple[str, ...]


def weight_products(graph: OpGraph) -> tuple[Op, ...]:
    """Products with a matrix from the checkpoint, in order of execution."""
    return tuple(op for op in graph.ops if op.kind in _PRODUCTS and op.weights and len(op.weights[0].shape) > 1)


def attention_products(graph: OpGraph) -> frozenset[str]:
    """Names of the first products behind attention, and of all those that they or the cache need (a gate on its result, too)."""
    attentions = [op for op in graph.ops if op.kind == "attention"]
    behind = [op for attention in attentions for op in _first_below(graph, attention, lambda op: op.kind in _PRODUCTS)]
    above = [found for op in (*attentions, *behind) for found in _above(graph, op)]
    return frozenset(op.name for op in (*behind, *above) if op.kind in _PRODUCTS)


def part_of(op: Op, attention: frozenset[str]) -> Part:
    return "attention" if op.name in attention else "mlp"


def fusion_groups(graph: OpGraph) -> dict[str, str]:
    """Product -> the first product of its part that reads the same value; experts, which read routed rows, stand alone."""
    attention = attention_products(graph)
    first: dict[tuple[Part, str], str] = {}
    groups: dict[str, str] = {}
    for op in weight_products(graph):
        alone = op.kind == "experts" or len(op.inputs) != 1
        groups[op.name] = op.name if alone else first.setdefault((part_of(op, attention), op.inputs[0]), op.name)
    return groups


def expert_sets(graph: OpGraph) -> tuple[tuple[str, ...], ...]:
    """Names of the products with experts, those that the same decision routes together."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for op in graph.ops:
        if op.kind == "experts":
            decided = tuple(sorted(value for value in op.inputs if _is_decided(graph, value)))
            sets.setdefault(decided, []).append(op.name)
    return tuple(map(tuple, sets.values()))


def routers(graph: OpGraph) -> frozenset[str]:
    """Names of the products whose result chooses experts."""
    return frozenset(op.name for op in weight_products(graph) if any(map(_decides, _first_below(graph, op, _decides))))


def norm_edges(graph: OpGraph) -> tuple[NormEdge, ...]:
    """Norms with a gain whose only readers are products with weights, themselves no routers."""
    linears = {op.name: op for op in weight_products(graph) if op.kind == "matmul"}
    edges = []
    for norm in graph.ops:
        readers = graph.consumers(norm.name)
        has_gain = norm.kind == "norm" and len(norm.weights) > 0 and norm.name not in graph.outputs
        if has_gain and readers and all(reader.name in linears for reader in readers):
            edges.append(NormEdge(norm.name, norm.weights[0].name, tuple(reader.name for reader in readers)))
    return tuple(edges)


def kv_bytes_per_token(graph: OpGraph) -> int:
    """Bytes that one new token of one sequence adds to the cache."""
    return sum(op.writes(1, 1, 1) for op in graph.ops if op.kind == "cache")


def _decides(op: Op) -> bool:
    return not _DECIDING.isdisjoint(op.detail.split())


def _is_decided(graph: OpGraph, value: str) -> bool:
    op = graph.producer(value)
    return op is not None and op.kind == "routing"


def _above(graph: OpGraph, start: Op) -> list[Op]:
    """Everything that `start` needs."""
    found = [start]
    for op in found:
        producers = (graph.producer(value) for value in op.inputs)
        found += [made for made in dict.fromkeys(producers) if made is not None and made not in found]
    return found[1:]


def _first_below(graph: OpGraph, start: Op, wanted: Callable[[Op], bool]) -> list[Op]:
    """The wanted ops that are reached from `start` without passing a product or another wanted one."""
    met: list[Op] = []
    queue = [start]
    for op in queue:
        for user in (user for user in graph.ops if any(value.partition(".")[0] == op.name for value in user.inputs)):
            if user in queue or user in met:
                continue
            if wanted(user):
                met.append(user)
            elif user.kind not in _PRODUCTS:
                queue.append(user)
    return met
