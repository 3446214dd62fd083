"""Activations: the most that tensors hold at once in a stage beside weights, cache and logits, by what its layers are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmpq.costs.live_bytes import Shape, layer_bytes, received_bytes, weight_bytes
from llmpq.costs.memory import activation_bytes
from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.cluster import Device
from llmpq.layer_option import LayerOption

Cell = tuple[int, int]  # kind, option
Bytes = tuple[tuple[int, ...], ...]
Charge = Callable[[LayerGraph, LayerKind, Shape, LayerOption, bool], int]


@dataclass(frozen=True, slots=True)
class Activations:
    """Of one phase at one micro-batch size, bytes.

    layer:    [device][kind][option] inside one layer, what it is given included
    unpacked: [device][kind][option] by how much more for the weights that its linears make of codes, one at a time in a stage
    received: what every stage but the first keeps of what it was sent
    """

    layer: tuple[Bytes, ...]
    unpacked: tuple[Bytes, ...]
    received: int

    def of_stage(self, device: int, cells: Iterable[Cell], is_first: bool) -> int:
        """Of a stage with such layers, in any number; 0 of none."""
        known = tuple(dict.fromkeys(cells))
        if not known:
            return 0
        inside = max(self.layer[device][kind][option] for kind, option in known)
        unpacked = max(self.unpacked[device][kind][option] for kind, option in known)
        return inside + unpacked + (0 if is_first else self.received)

    def narrowed(self, options: Iterable[int]) -> "Activations":
        """Of these options alone, numbered anew."""
        kept = tuple(options)

        def columns(rows: Bytes) -> Bytes:
            return tuple(tuple(row[option] for option in kept) for row in rows)

        return Activations(tuple(map(columns, self.layer)), tuple(map(columns, self.unpacked)), self.received)


def own_activations(
    graph: LayerGraph, devices: tuple[Device, ...], options: tuple[LayerOption, ...], shape: Shape
) -> Activations:
    """On our own runtime, counted tensor by tensor. CPUs unpack a part of a weight at a time."""

    def cells(charge: Charge, in_place: bool) -> Bytes:
        return tuple(tuple(charge(graph, kind, shape, option, in_place) for option in options) for kind in graph.kinds)

    in_place = tuple(device.type.kind == "cpu" for device in devices)
    layer, unpacked = ({cpu: cells(charge, cpu) for cpu in set(in_place)} for charge in (layer_bytes, weight_bytes))
    return Activations(
        layer=tuple(layer[cpu] for cpu in in_place),
        unpacked=tuple(unpacked[cpu] for cpu in in_place),
        received=received_bytes(graph, shape),
    )


def bounded_activations(graph: LayerGraph, num_devices: int, num_options: int, shape: Shape) -> Activations:
    """On other engines, by one formula in which every option needs the same."""
    most = max(activation_bytes(graph, kind, *shape) for kind in graph.kinds)
    nothing = ((0,) * num_options,) * len(graph.kinds)
    same = ((most,) * num_options,) * len(graph.kinds)
    return Activations((same,) * num_devices, (nothing,) * num_devices, 0)
