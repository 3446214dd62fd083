"""Tiny random programs with costs and sensitivity, and their optimum by enumeration, for the tests of planning."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations_with_replacement, permutations, product

from llmpq.costs.table import micro_batch_sizes
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.option_sets import option_sets
from llmpq.planning.search import rows_of
from llmpq.precision import parse_precisions
from llmpq.program import Program, Request, Target
from llmpq.sensitivity import SensitivityTable
from llmpq.solver.milp import breaks
from llmpq.solver.problem import Assignment, Evaluation, evaluate
from llmpq.solver.rules import parse_rules
from llmpq.workload import Batch
from tests.values import llama_graph, llama_kind

GAP = 1e-6
RULES = (
    "layers[0].bits >= 8",
    "device('CPU:0').layers <= 1",
    "last_layer.device == 'CPU:1'",
    "layers[0].device == layers[1].device",
)


def random_program(seed: int, target: Target | None = None) -> Program:
    """2-3 layers of one or two kinds, 2-3 CPUs of few sorts on one or two hosts, two precisions, now and then a rule."""
    rng = random.Random(seed)
    graph = random_graph(rng)
    rules = parse_rules(rng.sample(RULES, rng.choice((0, 0, 1))))
    chosen = Target(budget=rng.choice((None, rng.uniform(0, 1) * graph.num_layers))) if target is None else target
    precisions = parse_precisions(rng.choice(("16,w4a16", "16,w8a16", "w8a16,w4a16")))
    request = Request(random_cluster(rng), Batch(rng.choice((2, 4)), 16, 8), precisions, chosen, rules, gap=GAP)
    return with_sensitivity(with_costs(Program(graph, request)), rng)


def random_graph(rng: random.Random) -> LayerGraph:
    graph = llama_graph(num_layers=rng.randint(2, 3), tied=rng.random() < 0.5)
    if rng.random() < 0.5:
        return graph
    kinds = (llama_kind(), replace(llama_kind(ffn=512), name="layer-1"))
    return replace(graph, kinds=kinds, layer_kind=tuple(i % 2 for i in range(graph.num_layers)))


def random_cluster(rng: random.Random, count: int | None = None) -> Cluster:
    """Memory from too little for anything to enough for most models at 16 bits."""
    sorts = [f"type: CPU, memory: {rng.randint(400, 1500)} KiB, speed: {rng.choice((0.25, 0.5, 1))}" for _ in range(2)]
    devices = [f"  - {{{rng.choice(sorts)}, host: {rng.choice('ab')}}}" for _ in range(count or rng.randint(2, 3))]
    links = "links:\n  within_host: {bandwidth: 2 GB/s, latency: 10 us}\n  between_hosts: {bandwidth: 0.2 GB/s, latency: 200 us}"
    return Cluster.from_yaml("\n".join(["name: random", "devices:", *devices, links]), "random.yaml")


def with_costs(program: Program) -> Program:
    return run_passes(program, parse_pipeline("derive-costs"))


def with_sensitivity(program: Program, rng: random.Random) -> Program:
    """Falling with the bits; one time in two the same for every layer."""
    bits = [max(precision.num_bits for precision in option.parts) for option in program.request.precisions]
    rows = [tuple(rng.uniform(0.2, 1) * (16 - b) / 12 for b in bits) for _ in range(program.graph.num_layers)]
    rows = rows[:1] * len(rows) if rng.random() < 0.5 else rows
    options = tuple(precision.name for precision in program.request.precisions)
    return replace(program, sensitivity=SensitivityTable(options, tuple(rows), "random", "random"))


def every_order(program: Program) -> Iterator[tuple[int, ...]]:
    """Every device alone, and all devices in every order (some may be left out)."""
    devices = range(len(program.request.cluster.devices))
    yield from ((j,) for j in devices)
    yield from (order for order in permutations(devices) if len(order) > 1)


def every_candidate(program: Program) -> Iterator[Candidate]:
    workload = program.request.workload
    assert isinstance(workload, Batch)
    sizes = micro_batch_sizes(workload, len(program.request.cluster.devices))
    return (
        Candidate(order, *pair, options=options)
        for order in every_order(program)
        for pair in sizes
        for options in option_sets(program, *pair)
    )


def feasible(program: Program, candidate: Candidate, budget: float | None) -> Iterator[tuple[Assignment, Evaluation]]:
    """Every assignment of the candidate that breaks nothing."""
    problem, rows = build_problem(program, candidate, budget), rows_of(program, candidate)
    layers = range(program.graph.num_layers)
    for device in combinations_with_replacement(range(len(candidate.order)), len(layers)):
        for option in product(range(len(problem.options)), repeat=len(layers)):
            assignment = Assignment(device, option)
            if not breaks(problem, rows, assignment):
                yield assignment, evaluate(problem, assignment)


def enumerate_plans(program: Program, budget: float | None) -> Iterator[tuple[Candidate, Assignment, Evaluation]]:
    for candidate in every_candidate(program):
        yield from ((candidate, *found) for found in feasible(program, candidate, budget))


def best_objective(program: Program, budget: float | None) -> float | None:
    """The least objective over every order, size and assignment; None when none is feasible."""
    return min((evaluation.objective for _, _, evaluation in enumerate_plans(program, budget)), default=None)
