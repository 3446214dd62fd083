"""Bands of a plan: how the errors of its layers and links combine to those of prefill, decode and tokens per second."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, sqrt

from llmpq.costs.source_bands import link_band, option_band
from llmpq.hardware.cluster import Device
from llmpq.layer_option import LayerOption
from llmpq.plan import SERVED_TOKENS, Bands, Load, Range
from llmpq.precision import PRECISIONS
from llmpq.program import Program
from llmpq.solver.problem import Assignment, EndCost, Problem, decode_latency, prefill_latency
from llmpq.workload import Batch

LINK_GROUP = "links"
Seconds = tuple[float, float]  # of prefill and of decode


@dataclass(frozen=True, slots=True)
class Term:
    """Seconds on one stage, or on the link that leaves it, that share an error: of a prefill and of a decode micro-batch.

    group: terms of one group are off by the same share of their bands, those of different groups independently
    """

    stage: int
    is_link: bool
    group: str
    prefill_s: float
    decode_s: float
    band: Range


Factors = Callable[[Term], float]
ENDS: tuple[Callable[[Range], float], ...] = (lambda band: band.low, lambda band: band.high)


def combined(problem: Problem, terms: tuple[Term, ...]) -> tuple[Range, Range, Range]:
    """Bands of the seconds of prefill, of decode and of both.

    One group after the other is put to the ends of its bands while the rest stays as predicted: independent errors, whose
    distances from the prediction add up as squares. Where stages tie for the slowest, no group alone makes it quicker; so all n
    groups are also moved together, by 1 / sqrt(n) of the way, which is never farther where errors just add up. The farther of
    the two is the end. tests/test_bands.py has this against random draws.
    """
    groups = tuple(dict.fromkeys(term.group for term in terms))
    share = 1 / sqrt(len(groups))
    middle = pipeline_seconds(problem, terms, lambda term: 1.0)
    alone = [[pipeline_seconds(problem, terms, _at(end, group)) for group in groups] for end in ENDS]
    together = [pipeline_seconds(problem, terms, _part_of_the_way(end, share)) for end in ENDS]

    def band(value: Callable[[Seconds], float]) -> Range:
        below, above = (
            max(hypot(*(value(found) - value(middle) for found in alone[side])), abs(value(together[side]) - value(middle)))
            for side in (0, 1)
        )
        return Range(max(0.0, value(middle) - below), value(middle) + above)

    return band(lambda found: found[0]), band(lambda found: found[1]), band(lambda found: found[0] + found[1])


def pipeline_seconds(problem: Problem, terms: tuple[Term, ...], factor: Factors) -> Seconds:
    """Of prefill and decode when every term takes its factor of what is predicted."""
    stages = 1 + max(term.stage for term in terms)
    times = {(link, phase): [0.0] * stages for link in (False, True) for phase in (0, 1)}
    for term in terms:
        times[term.is_link, 0][term.stage] += factor(term) * term.prefill_s
        times[term.is_link, 1][term.stage] += factor(term) * term.decode_s
    prefill = prefill_latency(problem, times[False, 0], times[True, 0])
    return prefill, decode_latency(problem, times[False, 1], times[True, 1])


def terms_of(program: Program, problem: Problem, assignment: Assignment) -> tuple[Term, ...]:
    """Layers and ends of every used device, those of one device type in a group, and the links, all in another."""
    cluster, used = program.request.cluster, assignment.used_devices
    devices = [cluster.device(problem.devices[j]) for j in used]
    terms = [*_layers(program, problem, assignment, devices), *_ends_of_pipeline(program, problem, used, devices)]
    hops = [*pairwise(range(len(used))), (len(used) - 1, 0)]
    for a, b in hops if len(used) > 1 else ():
        prefill = problem.link_prefill_s[used[a]][used[b]] if b else 0.0
        band = link_band(cluster.link(devices[a].name, devices[b].name))
        terms.append(Term(a, True, LINK_GROUP, prefill, problem.link_decode_s[used[a]][used[b]], band))
    return tuple(terms)


def bands_of(program: Program, problem: Problem, assignment: Assignment, load: Load | None) -> Bands | None:
    """Bands of what is predicted of a plan; None where nothing takes any time."""
    workload = program.request.workload
    prefill, decode, both = combined(problem, terms_of(program, problem, assignment))
    if both.low <= 0:
        return None
    if load is None:
        assert isinstance(workload, Batch), "a plan for serving has a load"
        tokens = workload.batch_size * workload.gen_len
        return Bands(prefill, decode, both, Range(tokens / both.high, tokens / both.low))
    trip = decode.scaled(load.running / SERVED_TOKENS)
    return Bands(Range(0.0, 0.0), trip, trip, Range(load.running / trip.high, load.running / trip.low))


def _at(end: Callable[[Range], float], group: str) -> Factors:
    return lambda term: end(term.band) if term.group == group else 1.0


def _part_of_the_way(end: Callable[[Range], float], share: float) -> Factors:
    return lambda term: 1 + share * (end(term.band) - 1)


def _layers(program: Program, problem: Problem, assignment: Assignment, devices: list[Device]) -> Iterator[Term]:
    options = dict(zip((option.name for option in program.request.precisions), program.request.precisions))
    for stage, j in enumerate(assignment.used_devices):
        chosen: dict[str, list[Seconds]] = {}
        for kind, device, option in zip(problem.layer_kind, assignment.device, assignment.option):
            if device == j:
                cell = problem.prefill_s[kind][j][option] or 0.0, problem.decode_s[kind][j][option] or 0.0
                chosen.setdefault(problem.options[option], []).append(cell)
        for name, cells in chosen.items():
            yield _term(program, devices[stage], stage, options[name], *(sum(column) for column in zip(*cells)))


def _ends_of_pipeline(program: Program, problem: Problem, used: tuple[int, ...], devices: list[Device]) -> Iterator[Term]:
    ends: tuple[tuple[int, EndCost], ...] = ((0, problem.first_stage), (len(used) - 1, problem.last_stage))
    for stage, end in ends:
        cell = end.prefill_s[used[stage]], end.decode_s[used[stage]]
        yield _term(program, devices[stage], stage, PRECISIONS["16"], *cell)


def _term(program: Program, device: Device, stage: int, option: LayerOption, prefill_s: float, decode_s: float) -> Term:
    band = option_band(device, option, program.request.engine, program.graph, program.request.profile)
    return Term(stage, False, device.type.name, prefill_s, decode_s, band)
