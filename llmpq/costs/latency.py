"""Latency of layers and ends: what their operators take, and the overhead of launching them."""

from llmpq.costs.linear_latency import DTYPE, SIXTEEN, roofline_s
from llmpq.costs.op_latency import attention_s, collectives_s, of_batch, products_s, streams_s
from llmpq.costs.profile import Profile
from llmpq.graph import FLOAT_BYTES, LayerGraph, LayerKind
from llmpq.hardware.cluster import Device
from llmpq.hardware.devices import DeviceType
from llmpq.hardware.support import support
from llmpq.layer_option import LayerOption
from llmpq.op_graph import OpGraph
from llmpq.plan import ComputeDtype

_SAMPLING_PASSES = 2  # over the logits, beside writing them: log-probabilities and the choice; assumed


def layer_latency_s(
    device: Device,
    kind: LayerKind,
    option: LayerOption,
    rows: int,
    tokens: int,
    context: int,
    compute_dtype: ComputeDtype,
    engine: str,
) -> float:
    """Seconds of one layer for `rows` sequences of `tokens` new tokens that attend to `context` positions at the end."""
    measure = of_batch(tokens, context, rows)
    products = products_s(device, kind.ops, kind.linears, option, measure, compute_dtype, engine)
    scores = attention_s(device, kind.ops, kind.attention.window, rows, tokens, context, compute_dtype)
    beside = streams_s(device, kind.ops, measure, compute_dtype) + collectives_s(device, kind.ops, measure)
    return products + scores + beside + overhead_s(device)


def overhead_s(device: Device) -> float:
    """Of launching one layer's kernels."""
    return device.type.overhead_s / device.speed


def head_latency_s(device: Device, graph: LayerGraph, rows: int, compute_dtype: ComputeDtype) -> float:
    """Final norm, head and sampling for the last position of `rows` sequences."""
    sampling = rows * graph.vocab_size * _SAMPLING_PASSES * FLOAT_BYTES
    return _end_s(device, graph.last_ops, rows, compute_dtype) + roofline_s(device, DTYPE[compute_dtype], 0, sampling)


def embedding_latency_s(device: Device, graph: LayerGraph, tokens: int, compute_dtype: ComputeDtype) -> float:
    """Gathering one row per token, and what follows up to the first layer."""
    return _end_s(device, graph.first_ops, tokens, compute_dtype)


def _end_s(device: Device, ops: OpGraph, rows: int, compute_dtype: ComputeDtype) -> float:
    """Ends know no context: every row is one token. They stay at 16 bits on every engine."""
    measure = of_batch(1, 1, rows)
    products = products_s(device, ops, (), SIXTEEN, measure, compute_dtype, "local")
    beside = streams_s(device, ops, measure, compute_dtype) + collectives_s(device, ops, measure)
    return products + beside + overhead_s(device)


def latency_provenance(
    devices: tuple[Device, ...],
    precisions: tuple[LayerOption, ...],
    engine: str,
    graph: LayerGraph | None = None,
    profile: Profile | None = None,
) -> str:
    """What the products of these devices rest on: "measured" with its band, "table", "roofline", or which for which type."""

    def of(device: Device) -> str:
        if profile is not None and graph is not None and profile.covers(device, graph):
            return "measured, within {:.0%} to {:.0%}".format(*profile.band)
        return _provenance(device.type, precisions, engine)

    found = {device.type.name: of(device) for device in devices}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{name}: {what}" for name, what in found.items())


def _provenance(device_type: DeviceType, precisions: tuple[LayerOption, ...], engine: str) -> str:
    from llmpq.costs.lookup import has_table

    used = (precision for option in precisions for precision in option.parts)
    levels = {precision: support(engine, device_type, precision).level for precision in used}
    runs = [precision.name if level == "native" else "16" for precision, level in levels.items() if level != "unsupported"]
    tables = [name for name in dict.fromkeys(runs) if has_table(device_type, name)]
    without = [name for name in dict.fromkeys(runs) if name not in tables]
    if not tables:
        return "roofline"
    return "table" if not without else f"table, {' and '.join(without)} by roofline"
