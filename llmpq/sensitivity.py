"""SensitivityTable: the expected increase of the loss, in nats per token, for each layer and option."""

from dataclasses import dataclass, field, replace

from llmpq.errors import InputError
from llmpq.graph import LayerGraph, LayerKind
from llmpq.layer_option import LayerOption
from llmpq.precision import CachePrecision
from llmpq.serialize import RARE

# Joint increase of the loss when every layer has this precision, nats per token, round to nearest.
# w4a16: perplexities of Llama-2-7B, 13B and 70B, 5.47/4.88/3.32 at 16 bits and 5.73/4.98/3.46 at 4 bits, group 128,
#        round to nearest (arXiv 2306.00978): ln ratios 0.046, 0.020, 0.041; the largest is taken.
# the others: assumed, in the order that theory gives (the noise falls by four with every bit).
PRIOR_NATS: dict[str, float] = {"16": 0.0, "w8a16": 0.0005, "w8a8": 0.005, "fp8": 0.004, "w4a16": 0.046, "w3a16": 0.25}
# The same of a whole KV cache, assumed: 8 bits for each head of each token lie far below w8a8, e4m3 has four significant bits.
PRIOR_CACHE_NATS: dict[CachePrecision, float] = {"16": 0.0, "int8": 0.001, "fp8": 0.004}


@dataclass(frozen=True, slots=True)
class SensitivityTable:
    """rows[layer][option], nats per token; `provenance` says which indicator on which text, or that it is the prior.

    errors: one standard error of each figure, None where nobody knows it. cached_at: the precision of the KV cache whose
    rounding every row counts a share of, so that a plan's total has all of it.
    """

    options: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    indicator: str
    provenance: str
    errors: tuple[tuple[float, ...], ...] | None = None
    cached_at: CachePrecision = field(default="16", metadata=RARE)

    def total(self, options: tuple[str, ...]) -> float:
        """Predicted increase of the loss when layer i has options[i]."""
        return sum(row[self.options.index(option)] for row, option in zip(self.rows, options, strict=True))

    def select(self, options: tuple[str, ...]) -> "SensitivityTable":
        """The same figures for some of the options, in the order given."""
        columns = [self.options.index(option) for option in options]
        rows, errors = (
            values and tuple(tuple(row[column] for column in columns) for row in values) for values in (self.rows, self.errors)
        )
        return replace(self, options=options, rows=rows or (), errors=errors)

    def with_cache(self, precision: CachePrecision, nats: float, error: float | None, told: str) -> "SensitivityTable":
        """The same figures with what rounding the whole cache costs, in equal shares; `told`: where that is from.

        Raises InputError where a rounded cache is counted already.
        """
        if self.cached_at != "16":
            raise InputError(f"the sensitivity counts a KV cache at {self.cached_at} already; give a table of 16 bits")

        def shifted(rows: tuple[tuple[float, ...], ...], by: float) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(value + by / len(rows) for value in row) for row in rows)

        return replace(
            self,
            rows=shifted(self.rows, nats),
            errors=None if self.errors is None or error is None else shifted(self.errors, error),
            provenance=f"{self.provenance}; {precision} cache +{nats:.4f} in all, {told}",
            cached_at=precision,
        )


def prior(graph: LayerGraph, options: tuple[LayerOption, ...]) -> SensitivityTable:
    """The documented prior: each precision's published joint increase, spread over the layers by their weights."""
    kinds = [graph.kind_of(i) for i in range(graph.num_layers)]
    total = sum(linear.in_features * linear.out_features * linear.experts for kind in kinds for linear in kind.linears)
    rows = tuple(tuple(_prior_nats(kind, option) / total if kind.is_quantizable else 0.0 for option in options) for kind in kinds)
    table = SensitivityTable(
        tuple(option.name for option in options),
        rows,
        "prior",
        "prior from published perplexities of Llama-2 (arXiv 2306.00978), spread evenly; not measured on this model",
    )
    return with_prior_cache(table, graph)


def with_prior_cache(table: SensitivityTable, graph: LayerGraph) -> SensitivityTable:
    """The table with the documented prior of the graph's KV cache, unless it counts that cache already."""
    kept = graph.cached_at
    return table if kept == table.cached_at else table.with_cache(kept, PRIOR_CACHE_NATS[kept], None, "assumed")


def _prior_nats(kind: LayerKind, option: LayerOption) -> float:
    """Published nats of each linear's precision times its weights."""
    return sum(
        PRIOR_NATS[option.of(linear.part).name] * linear.in_features * linear.out_features * linear.experts
        for linear in kind.linears
        if linear.is_quantizable
    )
