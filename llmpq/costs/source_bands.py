"""Source bands: how far measurements of whole layers and links lie from what a profile, a table or the roofline says of them."""

from llmpq.costs.profile import Profile
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Device
from llmpq.hardware.link import Link
from llmpq.hardware.link_table import find_link_kind
from llmpq.hardware.support import support
from llmpq.layer_option import LayerOption
from llmpq.plan import Range
from llmpq.precision import Precision

# One layer of a 30B Llama in another engine than the tables' (benchmarks/cost_model.py --layers; docs/costs.md), rounded
# outwards: what nine of ten of its times are of those predicted from a table, by the roofline that was fitted to every second of
# them (no surer than a table on the low side: a model of its own says less of others), and by that of other devices.
TABLE_16_BIT = Range(0.85, 1.2)
FITTED_ROOFLINE = Range(0.85, 1.25)
ROOFLINE_16_BIT = Range(0.5, 1.7)
# Assumed: between versions and engines quantized kernels differ by up to 55 %.
TABLE_QUANTIZED = Range(0.65, 1.6)
# Single products of the systems with tables, by roofline (llmpq.costs.band).
ROOFLINE_QUANTIZED = Range(0.7, 3.0)
# Assumed, but for those of the link table, which have bands of their own.
LINKS = {"measured": Range(0.8, 1.4), "given": Range(0.7, 1.5), "assumed": Range(0.3, 3.0)}


# A layer split among 2 or 4 T4 or L4, from what one card takes, its all-reduces by a ring fitted to the other groups, rounded
# outwards (benchmarks/tensor_parallel.py); on top of the band of the layer itself.
SPLIT = Range(0.8, 1.15)


def option_band(device: Device, option: LayerOption, engine: str, graph: LayerGraph, profile: Profile | None) -> Range:
    """Factors on the predicted seconds of a layer at the option; of two precisions what covers both."""
    first, *rest = (_precision_band(device, precision, engine, graph, profile) for precision in option.parts)
    for other in rest:
        first = first.hull(other)
    return first if device.ranks == 1 else Range(first.low * SPLIT.low, first.high * SPLIT.high)


def link_band(link: Link) -> Range:
    """Factors on the predicted seconds of a transfer; a link with no provenance that is known is as good as assumed."""
    if link.provenance == "table" and link.kind is not None:
        return Range(*find_link_kind(link.kind).band)
    return LINKS.get(link.provenance, LINKS["assumed"])


def _precision_band(device: Device, precision: Precision, engine: str, graph: LayerGraph, profile: Profile | None) -> Range:
    from llmpq.costs.lookup import has_table

    if (
        profile is not None
        and device.ranks == 1
        and profile.covers(device, graph)
        and precision.name in {p.precision for p in profile.points}
    ):
        return Range(*profile.band)
    native = support(engine, device.type, precision).level == "native"
    runs = precision.name if native else "16"
    if has_table(device.type, runs):
        table = TABLE_16_BIT if runs == "16" else TABLE_QUANTIZED
        return table.hull(ROOFLINE_16_BIT) if _is_latent(graph) else table
    if runs != "16":
        return ROOFLINE_QUANTIZED
    return FITTED_ROOFLINE if device.type.efficiency_source.startswith("measured") else ROOFLINE_16_BIT


def _is_latent(graph: LayerGraph) -> bool:
    """Whether keys and values differ in size, as those of latent attention: no table has such heads, so they go by roofline."""
    heads = (op.heads for kind in graph.kinds for op in kind.ops.ops if op.heads is not None)
    return any(found.head_dim != found.value_dim for found in heads)
