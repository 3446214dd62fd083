"""Engine limits: which devices of a cluster an engine can run a model on, and why it cannot use the others."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llmpq.costs import CostTable, PhaseCosts
from llmpq.errors import InfeasibleError
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.hardware.support import Support, needs_one_kind
from llmpq.layer_option import LayerOption
from llmpq.precision import Precision


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """`usable`: the devices that can run every layer at some precision; `notices`: what is forbidden, and why."""

    usable: tuple[Device, ...]
    notices: tuple[str, ...]


def engine_limits(graph: LayerGraph, cluster: Cluster, precisions: tuple[LayerOption, ...], engine: str) -> EngineLimits:
    """Raises InfeasibleError when the engine cannot load the model, or can use no device of the cluster."""
    if engine == "vllm" and any(linear.experts > 1 for kind in graph.kinds for linear in kind.linears):
        reason = f"vllm was not seen to load experts stored as one tensor, as those of {graph.model} are; use --engine local"
        raise InfeasibleError((reason,))
    refusals = {device.name: _refusal(graph, device, precisions, engine) for device in cluster.devices}
    able = tuple(device for device in cluster.devices if refusals[device.name] is None)
    reasons = _told((device, refused) for device in cluster.devices if (refused := refusals[device.name]) is not None)
    excluded = tuple(f"{names} cannot be used by {engine}: {why}" for names, why in reasons)
    if not able:
        raise InfeasibleError(excluded)
    kind = _strongest_kind(able) if needs_one_kind(engine) else None
    usable = tuple(device for device in able if kind in (None, device.type.kind))
    others = ", ".join(device.name for device in able if device not in usable)
    mixed = (f"{others} cannot be used beside {usable[0].name}: one {engine} runs one kind of device ({kind})",) if others else ()
    return EngineLimits(usable, (*excluded, *mixed, *_partly(graph, usable, precisions, engine), *_kept(graph, precisions)))


def without_devices(costs: CostTable, usable: Iterable[Device]) -> CostTable:
    """The same costs, with no option left on any device that is not in `usable`."""
    kept = {device.name for device in usable}
    columns = [name in kept for name in costs.devices]

    def masked(phase: PhaseCosts) -> PhaseCosts:
        return replace(
            phase,
            layer_s=tuple(
                tuple(row if keep else (None,) * len(row) for row, keep in zip(devices, columns)) for devices in phase.layer_s
            ),
        )

    return replace(costs, prefill=tuple(map(masked, costs.prefill)), decode=tuple(map(masked, costs.decode)))


def _refusal(graph: LayerGraph, device: Device, precisions: tuple[LayerOption, ...], engine: str) -> Support | None:
    """Why the device can run some kind of layer at none of the precisions; None when it can run all."""
    for kind in graph.kinds:
        answers = [layer_support(engine, device.type, precision, kind) for precision in precisions]
        if all(answer.level == "unsupported" for answer in answers):
            return answers[0]
    return None


def _partly(graph: LayerGraph, usable: tuple[Device, ...], precisions: tuple[LayerOption, ...], engine: str) -> tuple[str, ...]:
    """A notice for every precision that some usable device lacks."""
    found = []
    for precision in (option for option in precisions if isinstance(option, Precision)):
        lacking = []
        for device in usable:
            answers = (layer_support(engine, device.type, precision, kind) for kind in graph.kinds)
            refused = next((answer for answer in answers if answer.level == "unsupported"), None)
            lacking += [] if refused is None else [(device, refused)]
        found += [f"{names} cannot run {precision.name} on {engine}: {why}" for names, why in _told(lacking)]
    return tuple(found)


def _kept(graph: LayerGraph, precisions: tuple[LayerOption, ...]) -> tuple[str, ...]:
    """A notice of the weights that no precision changes."""
    if not any(part.is_quantized for option in precisions for part in option.parts):
        return ()
    names = dict.fromkeys(linear.name for kind in graph.kinds for linear in kind.linears if not linear.is_quantizable)
    return (f"{', '.join(names)} stay at 16 bits: what their module does with its experts is not known",) if names else ()


def _told(refused: Iterable[tuple[Device, Support]]) -> tuple[tuple[str, str], ...]:
    """(names of devices, reason with its source), devices of one reason together."""
    together: dict[Support, list[str]] = {}
    for device, answer in refused:
        together.setdefault(answer, []).append(device.name)
    return tuple((", ".join(names), f"{answer.reason} [{answer.source}]") for answer, names in together.items())


def _strongest_kind(devices: tuple[Device, ...]) -> str:
    """The kind of device with the most memory bandwidth in all, which decides decoding."""
    total: dict[str, float] = {}
    for device in devices:
        bandwidth = device.type.bandwidth_bytes_per_s * device.speed
        total[device.type.kind] = total.get(device.type.kind, 0.0) + bandwidth
    return max(total, key=lambda kind: total[kind])
