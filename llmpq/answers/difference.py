"""Difference: two plans side by side: figures, devices, and the layers that differ."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest

from llmpq.plan import Plan
from llmpq.printing import format_quality, format_sizes, format_workload

Placed = tuple[str, str] | None  # device and option of a layer; None: the model has no such layer


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of both plans, None where one has none."""

    name: str
    unit: str
    first: float | None
    second: float | None

    @property
    def ratio(self) -> float | None:
        """second / first."""
        return None if self.first is None or self.second is None or not self.first else self.second / self.first


@dataclass(frozen=True, slots=True)
class Setting:
    """What was asked for or chosen, in words."""

    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """A device of either plan: its layers, [first, last] or None where it is idle, and its bytes."""

    device: str
    first_layers: tuple[int, int] | None
    second_layers: tuple[int, int] | None
    first_bytes: int
    second_bytes: int


@dataclass(frozen=True, slots=True)
class LayerChange:
    """Layers [start, stop] that differ in the same way: (device, option) in either plan."""

    start: int
    stop: int
    first: Placed
    second: Placed


@dataclass(frozen=True, slots=True)
class Difference:
    """`settings` and `layers` hold what differs, `figures` and `devices` all there is."""

    figures: tuple[Figure, ...]
    settings: tuple[Setting, ...]
    devices: tuple[DeviceChange, ...]
    layers: tuple[LayerChange, ...]

    @property
    def is_empty(self) -> bool:
        same = all(figure.first == figure.second for figure in self.figures)
        return same and not self.settings and not self.layers


def difference(first: Plan, second: Plan) -> Difference:
    """What changes from the first plan to the second."""
    settings = tuple(Setting(name, a, b) for name, a, b in _settings(first, second) if a != b)
    figures = tuple(_figures(first, second))
    return Difference(figures, settings, tuple(_devices(first, second)), tuple(_layers(first, second)))


def _settings(first: Plan, second: Plan) -> Iterator[tuple[str, str, str]]:
    yield "model", first.model, second.model
    yield "cluster", first.cluster.name, second.cluster.name
    yield "engine", first.engine, second.engine
    yield "compute dtype", first.compute_dtype, second.compute_dtype
    yield "KV cache", first.kv_precision, second.kv_precision
    yield "workload", format_workload(first.workload), format_workload(second.workload)
    yield "constraints", "; ".join(first.constraints) or "none", "; ".join(second.constraints) or "none"
    yield "sizes", format_sizes(first), format_sizes(second)
    yield "quality", format_quality(first), format_quality(second)


def _figures(first: Plan, second: Plan) -> Iterator[Figure]:
    def figure(name: str, unit: str, of: Callable[[Plan], float | None]) -> Figure:
        return Figure(name, unit, of(first), of(second))

    yield figure("tokens/s", "tokens/s", lambda plan: plan.tokens_per_s)
    if first.prediction.load is None and second.prediction.load is None:
        yield figure("prefill", "s", lambda plan: plan.prediction.prefill_s)
        yield figure("decode", "s", lambda plan: plan.prediction.decode_s)
    else:
        yield figure("time per token", "s", lambda plan: None if plan.prediction.load is None else plan.prediction.load.tpot_s)
        yield figure("first token", "s", lambda plan: None if plan.prediction.load is None else plan.prediction.load.ttft_s)
        yield figure("running", "sequences", lambda plan: None if plan.prediction.load is None else plan.prediction.load.running)
    yield figure("sensitivity", "nats per token", lambda plan: plan.quality.sensitivity)
    yield figure("memory", "bytes", lambda plan: plan.ranks * sum(memory.total for memory in plan.prediction.memory))


def _devices(first: Plan, second: Plan) -> Iterator[DeviceChange]:
    spans = [{stage.device: (stage.layers[0], stage.layers[-1]) for stage in plan.stages} for plan in (first, second)]
    held = [{memory.device: memory.total for memory in plan.prediction.memory} for plan in (first, second)]
    groups = [stage.device for plan in (first, second) for stage in plan.stages if plan.ranks > 1]
    names = dict.fromkeys((*groups, *(device.name for plan in (first, second) for device in plan.cluster.devices)))
    for name in names:
        yield DeviceChange(name, spans[0].get(name), spans[1].get(name), held[0].get(name, 0), held[1].get(name, 0))


def _layers(first: Plan, second: Plan) -> Iterator[LayerChange]:
    pairs = enumerate(zip_longest(_placed(first), _placed(second)))
    for (before, after), run in groupby(pairs, key=lambda item: item[1]):
        numbers = [number for number, _ in run]
        if before != after:
            yield LayerChange(numbers[0], numbers[-1], before, after)


def _placed(plan: Plan) -> list[tuple[str, str]]:
    return [(stage.device, option) for stage in plan.stages for option in stage.options]
