"""Option sets: the options that a candidate chooses from, fewer where the others need much more memory while they compute."""

from dataclasses import replace

from llmpq.costs import CostTable, PhaseCosts
from llmpq.program import Program
from llmpq.solver.problem import Cells, Problem

OptionSet = tuple[int, ...] | None  # None: all


def live_bytes(phases: tuple[PhaseCosts, ...], device: int, options: OptionSet, is_first: bool = False) -> int:
    """Bytes that any stage on the device with layers at any of the options needs beside weights, cache and logits."""
    return max(phase.most_activations(device, options, is_first) for phase in phases)


def option_sets(program: Program, prefill_micro_batch: int, decode_micro_batch: int) -> tuple[OptionSet, ...]:
    """All options; then every set of those that need at most so much inside a layer and at most so much for an unpacked weight.

    A stage is charged for the options of its candidate that need the most of either, whether its layers take them or not. With
    these sets every plan whose stages take the same options is a candidate that is charged exactly what it needs.
    """
    costs: CostTable = program.require("costs")
    phases = (costs.phase("prefill", prefill_micro_batch), costs.phase("decode", decode_micro_batch))
    needs = [_needs(phases, option) for option in range(len(costs.options))]
    inside, unpacked = (sorted(set(column), reverse=True) for column in zip(*needs))
    sets = (tuple(o for o, (a, b) in enumerate(needs) if a <= most and b <= weight) for most in inside for weight in unpacked)
    return (None, *(found for found in dict.fromkeys(sets) if 0 < len(found) < len(needs)))


def _needs(phases: tuple[PhaseCosts, ...], option: int) -> tuple[int, int]:
    """Of layers at the option on any device: inside one, and for its largest weight while it is multiplied."""
    inside = max(row[option] + phase.activations.received for phase in phases for rows in phase.activations.layer for row in rows)
    return inside, max(row[option] for phase in phases for rows in phase.activations.unpacked for row in rows)


def sets_with(program: Program, prefill_micro_batch: int, decode_micro_batch: int, used: set[int]) -> tuple[OptionSet, ...]:
    """The sets that hold these options, from the most of them to the fewest, which need the least."""
    sets = option_sets(program, prefill_micro_batch, decode_micro_batch)[1:]
    return (None, *sorted((options for options in sets if options is not None and used <= set(options)), key=len, reverse=True))


def only_options(problem: Problem, options: OptionSet) -> Problem:
    """The problem with every other option unsupported."""
    if options is None:
        return problem

    def keep(cells: Cells) -> Cells:
        return tuple(tuple(tuple(c if b in options else None for b, c in enumerate(row)) for row in kind) for kind in cells)

    layer_bytes = tuple(
        tuple(tuple(cell if b in options else None for b, cell in enumerate(row)) for row in kind) for kind in problem.layer_bytes
    )
    return replace(problem, prefill_s=keep(problem.prefill_s), decode_s=keep(problem.decode_s), layer_bytes=layer_bytes)
