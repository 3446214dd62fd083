"""Bitwidth transfer: LLM-PQ's heuristic, from the plan of least loss towards speed, by trades with the slowest stage."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

from llmpq.layer_option import mean_bits, parse_option
from llmpq.planning.baselines import whole_groups
from llmpq.planning.candidate import Candidate
from llmpq.planning.fallback import Answer
from llmpq.planning.published import adabits, best_within_budget, least_lossy
from llmpq.planning.search import Start, rows_of
from llmpq.program import Program
from llmpq.solver.milp import breaks
from llmpq.solver.problem import Assignment, Problem, evaluate
from llmpq.workload import Serving

Stages = tuple[tuple[int, ...], ...]  # options held by each device, in the order of the pipeline


def transfer(program: Program) -> Answer:
    """AdaBits, then as long as it helps: the slowest stage gives layers to another, for one of more bits or for none.

    As published, decode is cut into one micro-batch per device and every size of prefill is tried, devices in the order of
    the cluster. Raises InfeasibleError where AdaBits does.
    """
    first = adabits(program).found
    candidates = tuple(dict.fromkeys((first.candidate, *_published_sizes(program))))
    starts = [start for candidate in candidates for start in least_lossy(program, candidate)]
    improved = [improve(program, start) for start in starts]
    return best_within_budget(program, improved, "bitwidth transfer")


def _published_sizes(program: Program) -> Iterator[Candidate]:
    workload = program.request.workload
    groups = () if isinstance(workload, Serving) else whole_groups(program)
    share = -(-getattr(workload, "batch_size", 1) // len(program.request.cluster.devices))
    return (group.candidate() for group in groups if group.decode_micro_batch == share)


def improve(program: Program, start: Start) -> Start:
    """The trades that help most, one after the other, within memory, rules and budget, or the start's loss if that is more."""
    candidate, problem, assignment = start
    rows, budget = rows_of(program, candidate), program.request.target.budget
    allowed = None if budget is None else max(budget, evaluate(problem, assignment).sensitivity)
    limited = replace(problem, sensitivity_budget=allowed)
    best = evaluate(problem, assignment).objective
    while True:
        trades = (realise(problem, stages) for stages in _trades(problem, assignment))
        kept = [trade for trade in trades if not breaks(limited, rows, trade)]
        better = min(kept, key=lambda trade: evaluate(problem, trade).objective, default=assignment)
        if evaluate(problem, better).objective >= best:
            return candidate, problem, assignment
        assignment, best = better, evaluate(problem, better).objective


def _trades(problem: Problem, assignment: Assignment) -> Iterator[Stages]:
    """One layer of a pioneer against as many of the straggler as weigh the same, or one layer of the straggler for nothing."""
    stages = _stages(problem, assignment)
    bits = tuple(mean_bits(parse_option(option)) for option in problem.options)
    straggler = max((j for j, held in enumerate(stages) if held), key=lambda j: _seconds(problem, assignment, j))
    for pioneer, other in permutations(range(len(stages)), 2):
        if other != straggler:
            continue
        for low in set(stages[straggler]):
            yield _exchanged(stages, (straggler, pioneer), (low,), ())
            for high in set(stages[pioneer]):
                count = int(bits[high] // bits[low])
                if high != low and count >= 1 and stages[straggler].count(low) >= count:
                    yield _exchanged(stages, (straggler, pioneer), (low,) * count, (high,))


def _exchanged(stages: Stages, between: tuple[int, int], given: tuple[int, ...], taken: tuple[int, ...]) -> Stages:
    """The first of `between` gives some options to the second, and takes others."""
    held = [list(options) for options in stages]
    for source, target, options in ((between[0], between[1], given), (between[1], between[0], taken)):
        for option in options:
            held[source].remove(option)
            held[target].append(option)
    return tuple(map(tuple, held))


def _stages(problem: Problem, assignment: Assignment) -> Stages:
    cells = list(zip(assignment.device, assignment.option))
    return tuple(tuple(option for device, option in cells if device == j) for j in range(len(problem.devices)))


def _seconds(problem: Problem, assignment: Assignment, device: int) -> float:
    """What a stage adds to the latency when it is the slowest."""
    layers = [i for i, place in enumerate(assignment.device) if place == device]
    prefill, decode = (
        sum(cells[problem.layer_kind[i]][device][assignment.option[i]] or 0.0 for i in layers)
        for cells in (problem.prefill_s, problem.decode_s)
    )
    return (problem.prefill_micro_batches - 1) * prefill + (problem.gen_len - 1) * problem.decode_micro_batches * decode


def realise(problem: Problem, stages: Stages) -> Assignment:
    """Ranges of these lengths; in each the layers that suffer most take the options that cost least."""
    faithful = sorted(range(len(problem.options)), key=lambda option: sum(row[option] for row in problem.sensitivity))
    device, option, first = [], [0] * problem.num_layers, 0
    for place, held in enumerate(stages):
        layers = range(first, first + len(held))
        suffering = sorted(layers, key=lambda i: (-max(problem.sensitivity[i]), i))
        for layer, chosen in zip(suffering, sorted(held, key=faithful.index)):
            option[layer] = chosen
        device += [place] * len(held)
        first += len(held)
    return Assignment(tuple(device), tuple(option))
