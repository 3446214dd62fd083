"""Profile: what layers and ends of a model were measured to take on one machine, interpolated between the sizes measured."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from json import dumps
from math import exp, hypot, log

from llmpq.costs.interpolation import nine_tenths
from llmpq.costs.point import Point
from llmpq.costs.step import Step
from llmpq.costs.step_times import SeparatePasses, SharedSteps
from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.link import Link
from llmpq.plan import ComputeDtype
from llmpq.precision import Precision
from llmpq.serialize import to_json

PROFILE_FORMAT = "llmpq-profile-1"


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured on; versions: (library, version)."""

    system: str
    processor: str
    cores: int
    threads: int
    versions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Profile:
    """Measured on a device of `device_type` whose speed is `speed`, in `compute_dtype`, in the engine of that name.

    kinds, ends: digests of what was measured, so that another model's layers never take these times
    link: between two processes of this machine, None where it was not measured
    message_cpu_s: of the own runtime, processor seconds that a stage's process spends on a step beside computing it, on the
    message that comes and the one that goes; 0 where that was not measured, or a card computes meanwhile
    beside: points that were taken while another process of the host computed as a stage does; () where that was not measured
    """

    device_type: str
    speed: float
    compute_dtype: ComputeDtype
    model: str
    kinds: tuple[str, ...]
    ends: str
    machine: Machine
    points: tuple[Point, ...] = ()
    link: Link | None = None
    engine: str = "local"
    format: str = PROFILE_FORMAT
    message_cpu_s: float = 0.0
    beside: tuple[Point, ...] = ()

    def layer_s(self, device: Device, kind: LayerKind, precision: Precision, step: Step) -> float | None:
        """Seconds of one layer; None where the device, the kind, the precision or a phase of the step was not profiled."""
        index = self._kind_index.get(kind_digest(kind)) if device.type.name == self.device_type else None
        seconds = None if index is None else self._times.layer_s(index, precision.name, step)
        return None if seconds is None else self._on(device) * seconds

    def ends_s(self, device: Device, graph: LayerGraph, step: Step) -> tuple[float, float] | None:
        """Seconds of a whole pipeline's ends: before the layers with the engine's own, and behind them with what the last stage
        spends on a step; None where they were not profiled."""
        if not self._has_ends(device, graph):
            return None
        found = self._times.ends_s(step)
        if found is None:
            return None
        first, last = (self._on(device) * seconds for seconds in found)
        engine_s = self._times.engine_s(step) if isinstance(self._times, SharedSteps) else 0.0
        return first + engine_s, last + self.stage_s(device, graph, step)

    def stage_s(self, device: Device, graph: LayerGraph, step: Step) -> float:
        """Seconds that each stage but the last spends on a step beside layers and ends; 0 where they were not profiled."""
        return self._on(device) * self._times.rank_s(step) if self._has_ends(device, graph) else 0.0

    def message_s(self, device: Device, graph: LayerGraph, step: Step) -> float:
        """Seconds that each of several stages spends on what it is told of a step and tells; 0 where that was not profiled."""
        if not self._has_ends(device, graph):
            return 0.0
        return self._on(device) * (self._times.message_s(step) + self.message_cpu_s)

    def covers(self, device: Device, graph: LayerGraph) -> bool:
        """Whether any layer of the graph was measured on such a device."""
        digests = {kind_digest(kind) for kind in graph.kinds}
        return bool(self.points) and device.type.name == self.device_type and not digests.isdisjoint(self.kinds)

    def applied(self, cluster: Cluster) -> Cluster:
        """The cluster with the measured link for an assumed one, where all its devices are of the profiled type."""
        alike = all(device.type.name == self.device_type for device in cluster.devices)
        if self.link is None or not alike or cluster.within_host.provenance != "assumed":
            return cluster
        return replace(cluster, within_host=self.link)

    def scaled(self, prefill: float, decode: float) -> "Profile":
        """Every time of a phase multiplied by that phase's factor."""
        points, beside = (
            tuple(point.scaled(decode if point.is_decode else prefill) for point in taken) for taken in (self.points, self.beside)
        )
        return replace(self, points=points, beside=beside)

    @cached_property
    def alone(self) -> "Profile":
        """Of a device that nothing else of its host slows down."""
        return replace(self, beside=()) if self.beside else self

    @cached_property
    def busy(self) -> "Profile":
        """Of a device while another of its host computes too; itself where that was not measured."""
        return replace(self, points=self.beside, beside=()) if self.beside else self

    @cached_property
    def band(self) -> tuple[float, float]:
        """Factors on a predicted latency: nine of ten repeats lie so close to their median, and nine of ten points so close to
        what their neighbours say without them, both taken together."""
        spread = [log(t.high_s / t.low_s) / 2 for point in self.points for t in (*point.layers, point.last) if t is not None]
        width = hypot(nine_tenths(spread), nine_tenths(self._times.misses))
        return exp(-width), exp(width)

    def _on(self, device: Device) -> float:
        return self.speed / device.speed

    @cached_property
    def _kind_index(self) -> dict[str, int]:
        return {digest: index for index, digest in enumerate(self.kinds)}

    def _has_ends(self, device: Device, graph: LayerGraph) -> bool:
        return bool(self.points) and device.type.name == self.device_type and ends_digest(graph) == self.ends

    @cached_property
    def _times(self) -> SeparatePasses | SharedSteps:
        tells_attention = all(point.attention for point in self.points)
        return SharedSteps(self.points) if self.points and tells_attention else SeparatePasses(self.points)


def by_device(
    profile: Profile | None, devices: tuple[Device, ...], cluster: tuple[Device, ...], at_once: bool
) -> tuple[Profile | None, ...]:
    """What each of these devices goes by. at_once: all of the cluster are at work, so that those of one host slow each other."""
    hosts = Counter(device.host for device in cluster)
    if profile is None or not profile.beside:
        return (profile,) * len(devices)
    return tuple(profile.busy if at_once and hosts[device.host] > 1 else profile.alone for device in devices)


def profile_of_dtype(profile: Profile | None, compute_dtype: ComputeDtype) -> Profile | None:
    """The profile, None where its times are of another compute dtype."""
    return profile if profile is not None and profile.compute_dtype == compute_dtype else None


def kind_digest(kind: LayerKind) -> str:
    """A name for the structure of a layer, whatever the graph calls it and at which precision it is cached."""
    return _digest(replace(kind.with_cache("16"), name=""))


def ends_digest(graph: LayerGraph) -> str:
    return _digest((graph.first_ops, graph.last_ops))


def _digest(value: object) -> str:
    return sha256(dumps(to_json(value), sort_keys=True).encode()).hexdigest()[:16]
