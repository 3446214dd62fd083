"""Shadow prices: what a little more memory, speed or loss, or one rule less, would buy, each by planning again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log1p
from typing import Literal

from llmpq.answers.subject import GAP, Subject
from llmpq.costs.latency import latency_provenance
from llmpq.errors import TimeLimitError
from llmpq.hardware.cluster import Cluster, Device
from llmpq.hardware.devices import DeviceType
from llmpq.hardware.link import Link
from llmpq.plan import Plan
from llmpq.planning.costing import costed
from llmpq.planning.orders import identical_devices
from llmpq.planning.robust import Choice, choice_of
from llmpq.program import Program
from llmpq.units import format_bytes

PriceKind = Literal["memory", "speed", "bandwidth", "compute", "link", "quality", "rule"]
GIB = 2**30
SHARE = 0.1  # of a device's memory, where that is less than a GiB
FASTER = 1.1
PER_MILLE = 1e-3  # of perplexity


@dataclass(frozen=True, slots=True)
class Price:
    """One change and the best plan with it: seconds saved of the batch (when serving, of 1000 tokens), tokens per second more.

    device: the one changed, "" where none is alone. proven: by a finished search on both sides; None figures: no plan was found
    in time.
    """

    kind: PriceKind
    device: str
    change: str
    saved_s: float | None
    more_tokens_per_s: float | None
    proven: bool

    @property
    def binds(self) -> bool:
        return self.saved_s is not None and self.saved_s > 0.0


@dataclass(frozen=True, slots=True)
class _Change:
    kind: PriceKind
    device: str
    words: str
    program: Program
    budget: float | None = None


def shadow_prices(subject: Subject, base: Plan, device: str | None = None) -> tuple[Price, ...]:
    """Every price, or those of one device, the dearest first; `base`: the best plan as things are.

    Gains below the gap of the searches are nothing. Identical devices have one price, that of the first.
    """
    known: dict[Choice, None] = {choice_of(subject.program, base): None}  # so that what is better for one change helps the next
    found = [_priced(subject, base, change, known) for change in _changes(subject, device)]
    return tuple(sorted(found, key=lambda price: -(price.saved_s or 0.0)))


def _priced(subject: Subject, base: Plan, change: _Change, known: dict[Choice, None]) -> Price:
    """The price of one change; the plan found is added to those known."""
    try:
        plan = subject.solved(change.program, change.budget, known)
    except TimeLimitError:
        plan = None
    if plan is None:
        return Price(change.kind, change.device, change.words, None, None, False)
    known[choice_of(change.program, plan)] = None
    before, after = base.optimality.objective, plan.optimality.objective
    saved = before - after if before - after > GAP * before else 0.0
    more = plan.tokens_per_s - base.tokens_per_s if saved else 0.0
    return Price(change.kind, change.device, change.words, saved, more, base.optimality.proven and plan.optimality.proven)


def _changes(subject: Subject, only: str | None) -> Iterator[_Change]:
    program = subject.program
    twins = identical_devices(program)
    for group in twins:
        names = [program.request.cluster.devices[j].name for j in group]
        if only is None or only in names:
            device = program.request.cluster.device(only or names[0])
            yield from _device_changes(program, device)
    if only is not None:
        return
    if len(subject.plan.stages) > 1:
        yield _Change("link", "", "all links 10 % faster", _with_cluster(program, _faster_links(program.request.cluster)))
    budget = subject.plan.quality.budget
    if budget is not None:
        yield _Change("quality", "", "0.1 % more perplexity", program, budget + log1p(PER_MILLE))
    for rule in program.request.rules:
        rules = tuple(other for other in program.request.rules if other is not rule)
        without = replace(program, request=replace(program.request, rules=rules))
        yield _Change("rule", "", f"without the constraint {rule.text!r}", without)


def _device_changes(program: Program, device: Device) -> Iterator[_Change]:
    extra = GIB if device.capacity_bytes >= GIB else int(SHARE * device.capacity_bytes)
    larger = replace(device, memory_bytes=device.memory_bytes + extra)
    yield _Change("memory", device.name, f"{format_bytes(extra)} more", _with_device(program, larger))
    faster = costed(_with_device(program, replace(device, speed=device.speed * FASTER)))
    yield _Change("speed", device.name, "10 % faster in all", faster)
    request, kind = program.request, device.type
    if latency_provenance((device,), request.precisions, request.engine, program.graph, request.profile) != "roofline":
        return  # measurements do not tell the two apart, and another type would not be the one measured
    flops = tuple((dtype, rate * FASTER) for dtype, rate in kind.flops)
    types: dict[PriceKind, tuple[str, DeviceType]] = {
        "bandwidth": ("10 % more bandwidth", replace(kind, bandwidth_bytes_per_s=kind.bandwidth_bytes_per_s * FASTER)),
        "compute": ("10 % more arithmetic", replace(kind, flops=flops)),
    }
    for name, (words, changed) in types.items():
        yield _Change(name, device.name, words, costed(_with_device(program, replace(device, type=changed))))


def _with_device(program: Program, changed: Device) -> Program:
    cluster = program.request.cluster
    devices = tuple(changed if device.name == changed.name else device for device in cluster.devices)
    return _with_cluster(program, replace(cluster, devices=devices))


def _with_cluster(program: Program, cluster: Cluster) -> Program:
    return replace(program, request=replace(program.request, cluster=cluster))


def _faster_links(cluster: Cluster) -> Cluster:
    def faster(link: Link) -> Link:
        return replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * FASTER, latency_s=link.latency_s / FASTER)

    pairs = tuple(replace(pair, link=faster(pair.link)) for pair in cluster.pairs)
    return replace(cluster, within_host=faster(cluster.within_host), between_hosts=faster(cluster.between_hosts), pairs=pairs)
