"""Profile: what layers and ends of a model were measured to take on one machine, interpolated between the sizes measured."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from json import dumps
from math import exp, hypot, log
from statistics import median

from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.link import Link
from llmpq.plan import ComputeDtype
from llmpq.precision import Precision
from llmpq.serialize import to_json

PROFILE_FORMAT = "llmpq-profile-1"
STEEPEST = 2.0  # growth beyond the grid, as a power of the size: attention of long prompts
_QUANTILE = 0.9

Lengths = Mapping[int, float]  # tokens or context -> seconds
Grid = Mapping[int, Lengths]  # by sequences


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of repeated passes, and the ends between which eight of ten lay."""

    median_s: float
    low_s: float
    high_s: float

    def scaled(self, factor: float) -> "Timing":
        return Timing(self.median_s * factor, self.low_s * factor, self.high_s * factor)


@dataclass(frozen=True, slots=True)
class Point:
    """One pass of `rows` sequences with `tokens` new tokens each that see `context` positions; one new token: a decode step.

    layers: one layer of each kind, None where the kind cannot have the precision; first: all before the layers, masks and
    positions included; last: head and sampling.
    """

    precision: str
    rows: int
    tokens: int
    context: int
    layers: tuple[Timing | None, ...]
    first: Timing
    last: Timing

    @property
    def key(self) -> tuple[str, int, int, int]:
        return self.precision, self.rows, self.tokens, self.context

    @property
    def is_decode(self) -> bool:
        return self.tokens == 1


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
    """Measured on a device of `device_type` whose speed is `speed`, in `compute_dtype`, by the own runtime.

    kinds, ends: digests of what was measured, so that another model's layers never take these times
    link: between two processes of this machine, None where it was not measured
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
    format: str = PROFILE_FORMAT

    def layer_s(
        self, device: Device, kind: LayerKind, precision: Precision, rows: int, tokens: int, context: int
    ) -> float | None:
        """Seconds of one layer; None where the device, the kind or the precision was not profiled."""
        index = self._kind_index.get(kind_digest(kind)) if device.type.name == self.device_type else None
        grid = None if index is None else self._layers.get((index, precision.name, tokens == 1))
        return None if grid is None else self._on(device) * interpolate(grid, rows, context)

    def ends_s(self, device: Device, graph: LayerGraph, rows: int, tokens: int, context: int) -> tuple[float, float] | None:
        """Seconds of what stands before the layers and behind them; None where they were not profiled."""
        grids = self._ends.get(tokens == 1)
        if grids is None or device.type.name != self.device_type or ends_digest(graph) != self.ends:
            return None
        first, last = (self._on(device) * interpolate(grid, rows, context) for grid in grids)
        return first, last

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
        return replace(self, points=tuple(_scaled(point, decode if point.is_decode else prefill) for point in self.points))

    @cached_property
    def band(self) -> tuple[float, float]:
        """Factors on a predicted latency: nine of ten repeats lie so close to their median, and nine of ten points so close to
        what their neighbours say without them, both taken together."""
        spread = [log(t.high_s / t.low_s) / 2 for point in self.points for t in (*point.layers, point.last) if t is not None]
        width = hypot(_quantile(spread), _quantile(left_out(self._layers.values())))
        return exp(-width), exp(width)

    def _on(self, device: Device) -> float:
        return self.speed / device.speed

    @cached_property
    def _kind_index(self) -> dict[str, int]:
        return {digest: index for index, digest in enumerate(self.kinds)}

    @cached_property
    def _layers(self) -> dict[tuple[int, str, bool], Grid]:
        found: dict[tuple[int, str, bool], dict[int, dict[int, float]]] = {}
        for point in self.points:
            for index, timing in enumerate(point.layers):
                if timing is not None:
                    grid = found.setdefault((index, point.precision, point.is_decode), {})
                    grid.setdefault(point.rows, {})[point.context] = timing.median_s
        return dict(found)

    @cached_property
    def _ends(self) -> dict[bool, tuple[Grid, Grid]]:
        """Ends stay at 16 bits whatever the layers: the median over what was measured beside them."""
        seen: dict[tuple[bool, int, int], list[Point]] = {}
        for point in self.points:
            seen.setdefault((point.is_decode, point.rows, point.context), []).append(point)
        found: dict[bool, tuple[dict[int, dict[int, float]], dict[int, dict[int, float]]]] = {}
        for (decode, rows, context), points in seen.items():
            first, last = found.setdefault(decode, ({}, {}))
            first.setdefault(rows, {})[context] = median(point.first.median_s for point in points)
            last.setdefault(rows, {})[context] = median(point.last.median_s for point in points)
        return dict(found)


def kind_digest(kind: LayerKind) -> str:
    """A name for the structure of a layer, whatever the graph calls it."""
    return _digest(replace(kind, name=""))


def ends_digest(graph: LayerGraph) -> str:
    return _digest((graph.first_ops, graph.last_ops))


def interpolate(grid: Grid, rows: int, length: int) -> float:
    """Seconds at a size: linear in log space, along the lengths of every measured number of sequences, then between those."""
    wide = {count: lengths for count, lengths in grid.items() if len(lengths) > 1} or grid
    return log_linear({count: log_linear(lengths, length) for count, lengths in wide.items()}, rows)


def log_linear(points: Lengths, x: float) -> float:
    """Through the two nearest points; outside of them their slope goes on, within [0, STEEPEST]."""
    xs = sorted(points)
    if len(xs) == 1:
        return points[xs[0]]
    right = min(max(bisect_left(xs, x), 1), len(xs) - 1)
    a, b = xs[right - 1], xs[right]
    slope = log(points[b] / points[a]) / log(b / a)
    if x > b:
        return points[b] * exp(min(max(slope, 0.0), STEEPEST) * log(x / b))
    return points[a] * exp((slope if x >= a else min(max(slope, 0.0), STEEPEST)) * log(x / a))


def left_out(grids: Iterable[Grid]) -> list[float]:
    """|log(measured / interpolated)| of every inner point along the lengths, each left out of its own interpolation."""
    lines = [lengths for grid in grids for lengths in grid.values()]
    return [
        abs(log(line[x] / log_linear({other: line[other] for other in line if other != x}, x)))
        for line in lines
        for x in sorted(line)[1:-1]
    ]


def _quantile(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(_QUANTILE * len(values)))] if values else 0.0


def _scaled(point: Point, factor: float) -> Point:
    layers = tuple(None if timing is None else timing.scaled(factor) for timing in point.layers)
    return replace(point, layers=layers, first=point.first.scaled(factor), last=point.last.scaled(factor))


def _digest(value: object) -> str:
    return sha256(dumps(to_json(value), sort_keys=True).encode()).hexdigest()[:16]
