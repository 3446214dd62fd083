"""Part options: of the options that mix precisions within a layer, those that no mixture of whole layers makes up for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from llmpq.costs import CostTable, PhaseCosts
from llmpq.precision import Precision
from llmpq.program import Program
from llmpq.sensitivity import SensitivityTable

MOST = 8  # options that a plan chooses from; the exact solver's time grows with their square

Point = tuple[float, float]  # bytes or seconds, and nats per token


def select_options(program: Program) -> Program:
    """The program with every option of one precision or that a rule names, and those mixed ones that gain most, up to MOST."""
    options, gains = program.request.precisions, mixed_gains(program)
    rules = " ".join(rule.text.lower() for rule in program.request.rules)
    given = [index for index, option in enumerate(options) if isinstance(option, Precision) or option.name in rules]
    able = sorted(
        (index for index, gain in gains.items() if gain > 0 and index not in given), key=lambda index: (-gains[index], index)
    )
    kept = sorted((*given, *able[: max(0, MOST - len(given))]))
    costs: CostTable = program.require("costs")
    table: SensitivityTable = program.require("sensitivity")
    chosen = tuple(options[index] for index in kept)
    return replace(
        program,
        request=replace(program.request, precisions=chosen),
        costs=_columns(costs, kept),
        sensitivity=table.select(tuple(option.name for option in chosen)),
    )


def mixed_gains(program: Program) -> dict[int, float]:
    """Index of every option that mixes precisions -> nats per token by which it lies below what whole layers reach.

    Summed over the layers and over what an option costs: its bytes, and its seconds in either phase on every device. Whole layers
    reach what lies above the lower convex envelope of the options of one precision: a mixture of layers costs their mean.
    """
    options, table = program.request.precisions, program.require("sensitivity")
    plain = [index for index, option in enumerate(options) if isinstance(option, Precision)]
    gains = {index: 0.0 for index in range(len(options)) if index not in plain}
    for layer, row in enumerate(table.rows):
        for costs in _axes(program, program.graph.layer_kind[layer]):
            known = [(cost, row[index]) for index in plain if (cost := costs[index]) is not None]
            for index in gains:
                cost = costs[index]
                if cost is not None and known:
                    gains[index] += max(0.0, envelope(known, cost) - row[index])
    return gains


def envelope(points: Sequence[Point], at: float) -> float:
    """The least second coordinate of any mean of two of the points whose first is at most `at`; that of the leftmost one at
    least."""
    left = min(points)
    found = [y for x, y in points if x <= at] or [left[1]]
    for (x0, y0), (x1, y1) in combinations(sorted(points), 2):
        if x0 < at < x1:
            found.append(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    return min(found)


def _axes(program: Program, kind: int) -> Iterator[Sequence[float | None]]:
    """What the options of a layer of this kind cost, [option]: bytes, then seconds by phase and device, middle sizes."""
    costs: CostTable = program.require("costs")
    yield tuple(map(float, costs.layer_bytes[kind]))
    for phases in (costs.prefill, costs.decode):
        yield from phases[len(phases) // 2].layer_s[kind]


def _columns(costs: CostTable, kept: Sequence[int]) -> CostTable:
    def narrowed(phase: PhaseCosts) -> PhaseCosts:
        cells = tuple(tuple(tuple(row[index] for index in kept) for row in devices) for devices in phase.layer_s)
        return replace(phase, layer_s=cells, activations=phase.activations.narrowed(kept))

    return replace(
        costs,
        options=tuple(costs.options[index] for index in kept),
        layer_bytes=tuple(tuple(row[index] for index in kept) for row in costs.layer_bytes),
        prefill=tuple(map(narrowed, costs.prefill)),
        decode=tuple(map(narrowed, costs.decode)),
    )
