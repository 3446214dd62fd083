"""Hardware changes: more memory on one device, one device more, or another engine, each the smallest that makes it fit."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import inf

from llmpq.errors import ClusterError
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.devices import DeviceType, device_types
from llmpq.hardware.support import engines, supported_precisions
from llmpq.planning.changes import Change, Question
from llmpq.planning.fit import asked
from llmpq.planning.largest import first
from llmpq.planning.orders import identical_devices
from llmpq.program import Program
from llmpq.units import format_bytes

MIB = 2**20
STEPS = ((2**30, 64 * MIB), (0, MIB // 16))  # (from this memory on, bytes that sizes are rounded to)
MORE = (2, 4, 8)  # devices, where one more does not help


def memory_changes(program: Program, fits: Question) -> Iterator[Change]:
    """The device that needs the fewest bytes more, and how many; nothing where memory of one device alone does not help."""
    request, best = program.request, int(_bytes_of_everything(program))
    found: tuple[int, Device] | None = None
    for twins in identical_devices(program):
        device = request.cluster.devices[twins[0]]
        step = next(size for least, size in STEPS if device.memory_bytes >= least)
        enough = partial(_enough, program, fits, device)
        extra = first(enough, range(step, best, step))
        if extra is not None:
            best, found = extra, (extra, device)
    if found is not None:
        extra, device = found
        memory, reserve = device.memory_bytes + extra, device.reserve_bytes
        words = f"{format_bytes(device.capacity_bytes + extra)} for the model on {device.name}, {format_bytes(extra)} more"
        how = f"{device.name} in the cluster file: {{memory: {memory / MIB:.10g} MiB, reserve: {reserve / MIB:.10g} MiB}}"
        yield Change("memory", words, how, replace(request, cluster=_enlarged(request.cluster, device, extra)))


def _enough(program: Program, fits: Question, device: Device, extra: int) -> bool:
    """Whether that many bytes more on the device suffice; the costs do not depend on them."""
    cluster = _enlarged(program.request.cluster, device, extra)
    return fits(replace(program, request=replace(program.request, cluster=cluster)))


def _enlarged(cluster: Cluster, device: Device, extra: int) -> Cluster:
    larger = replace(device, memory_bytes=device.memory_bytes + extra)
    return replace(cluster, devices=tuple(larger if other == device else other for other in cluster.devices))


def _bytes_of_everything(program: Program) -> int:
    """No device can need more than the whole model at its largest, with the activations of the largest micro-batch."""
    costs = program.require("costs")
    layers = sum(max(costs.layer_bytes[kind]) + costs.kv_bytes[kind] for kind in program.graph.layer_kind)
    phases = (*costs.prefill, *costs.decode)
    alive = max(phase.activation_bytes + phase.logits_bytes for phase in phases)
    return int(layers + costs.first_bytes + costs.last_bytes + alive)


def device_changes(program: Program, fits: Question) -> Iterator[Change]:
    """One more device of a type that is there, the cheapest by price, else the smallest; else one of the library's types;
    else more of one that is there."""

    def has_room(cluster: Cluster) -> bool:
        return fits(asked(program, replace(program.request, cluster=cluster)))

    cluster = program.request.cluster
    present = {device.type.name: device for device in reversed(cluster.devices)}
    by_price = sorted(present.values(), key=lambda device: (_price(device), device.capacity_bytes, device.name))
    found = next((larger for larger in (_with_device(cluster, device, 1) for device in by_price) if has_room(larger)), None)
    if found is None:
        found = first(has_room, tuple(_with_library_types(program)))
    if found is None:
        several = (_with_device(cluster, device, count) for count in MORE for device in by_price)
        found = next((larger for larger in several if has_room(larger)), None)
    if found is not None:
        yield _device_change(program, found)


def _price(device: Device) -> float:
    return inf if device.price_per_hour is None else device.price_per_hour


def _with_library_types(program: Program) -> Iterator[Cluster]:
    """The cluster with one device of each type that it has not and that the engine runs on, from small to large."""
    request, kinds = program.request, {device.type.kind for device in program.request.cluster.devices}
    present = {device.type.name for device in request.cluster.devices}
    for kind in sorted(device_types().values(), key=lambda kind: kind.memory_bytes - kind.reserve_bytes):
        runs = supported_precisions(request.engine, kind, request.precisions)
        if kind.name not in present and kind.kind in kinds and runs:
            yield _with_device(request.cluster, _new_device(kind), 1)


def _new_device(kind: DeviceType) -> Device:
    return Device(kind.name, kind, kind.memory_bytes, kind.reserve_bytes, 1.0, "", None)


def _with_device(cluster: Cluster, like: Device, count: int) -> Cluster:
    """`count` more devices like that one, together on a host of their own."""
    numbers = [int(device.name.rpartition(":")[2]) for device in cluster.devices if device.type.name == like.type.name]
    taken = max(numbers, default=-1) + 1
    host = next(name for number in range(len(cluster.devices) + 1) if (name := f"new-{number}") not in _hosts(cluster))
    more = tuple(replace(like, name=f"{like.type.name}:{taken + number}", host=host) for number in range(count))
    return replace(cluster, devices=cluster.devices + more)


def _hosts(cluster: Cluster) -> set[str]:
    return {device.host for device in cluster.devices}


def _device_change(program: Program, larger: Cluster) -> Change:
    more = larger.devices[len(program.request.cluster.devices) :]
    device, count = more[0], len(more)
    price = "" if device.price_per_hour is None else f" at {device.price_per_hour * count:g} an hour"
    number = "one more" if count == 1 else f"{count} more"
    words = f"{number} {device.type.name} of {format_bytes(device.capacity_bytes)} for the model, on a host of its own{price}"
    short = _short(program.request.cluster, larger, f"{count}x{device.type.name}")
    if short is not None:
        return Change("device", words, f'--cluster "{short.name}"', replace(program.request, cluster=short))
    how = f"one more entry of devices in the cluster file: {{{_entry(device, count)}}}"
    return Change("device", words, how, replace(program.request, cluster=larger))


def _short(cluster: Cluster, larger: Cluster, item: str) -> Cluster | None:
    """The larger cluster as a short string, where the cluster was one."""
    try:
        found = Cluster.load(f"{cluster.name},{item}")
    except ClusterError:
        return None
    kept = ("name", "type", "memory_bytes", "reserve_bytes", "speed")
    figures = [[[getattr(device, field) for field in kept] for device in known.devices] for known in (found, larger)]
    plain = not cluster.pairs and (cluster.within_host, cluster.between_hosts) == (found.within_host, found.between_hosts)
    return found if plain and figures[0] == figures[1] else None


def _entry(device: Device, count: int) -> str:
    """The device as a line of a cluster file."""
    parts = [f"type: {device.type.name}", f"count: {count}", f"host: {device.host}"]
    if (device.memory_bytes, device.reserve_bytes) != (device.type.memory_bytes, device.type.reserve_bytes):
        parts += [f"memory: {device.memory_bytes / MIB:.10g} MiB", f"reserve: {device.reserve_bytes / MIB:.10g} MiB"]
    parts += [] if device.speed == 1 else [f"speed: {device.speed:g}"]
    return ", ".join(parts)


def engine_changes(program: Program, fits: Question) -> Iterator[Change]:
    """The other engines that run what was asked for."""
    request = program.request
    for engine in (engine for engine in engines() if engine != request.engine):
        changed = replace(request, engine=engine)
        if fits(asked(program, changed)):
            yield Change("engine", f"engine {engine} instead of {request.engine}", f"--engine {engine}", changed)
