"""Published planners as baselines: what each of them promises, against enumeration, and their placements as golden text."""

from dataclasses import replace

import pytest

from llmpq.errors import InfeasibleError
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning.published import adabits, equal_sizes, least_lossy, pipeedge, uniform
from llmpq.planning.transfer import improve, realise, transfer
from llmpq.printing import format_stage
from llmpq.program import Program, Target
from llmpq.solver.problem import Assignment, Evaluation, Problem, evaluate
from llmpq.workload import Batch
from tests.conftest import Golden
from tests.random_programs import feasible, random_program
from tests.values import llama_graph, program, two_cpus

UNLIMITED = Target(None)
SEEDS = range(24)


def programs() -> list[Program]:
    """Without rules and budget: what the planners promise is then exact."""
    plain = (random_program(seed, UNLIMITED) for seed in SEEDS)
    return [replace(ready, request=replace(ready.request, rules=())) for ready in plain if ready.graph.num_layers > 1]


def plans_with_ends(ready: Program) -> list[tuple[Assignment, Evaluation]]:
    """Every plan of all devices in the order of the cluster whose first and last device hold a layer, by candidate."""
    last = len(ready.request.cluster.devices) - 1
    return [
        (assignment, evaluation)
        for candidate in equal_sizes(ready)
        for assignment, evaluation in feasible(ready, candidate, None)
        if {0, last} <= set(assignment.device)
    ]


def test_adabits_loses_the_least_of_every_micro_batch_size() -> None:
    found = 0
    for ready in programs():
        for candidate in equal_sizes(ready):
            last = len(candidate.order) - 1
            plans = [e.sensitivity for a, e in feasible(ready, candidate, None) if {0, last} <= set(a.device)]
            starts = least_lossy(ready, candidate)
            assert bool(starts) == bool(plans)
            for _, problem, assignment in starts:
                found += 1
                assert evaluate(problem, assignment).sensitivity == pytest.approx(min(plans), rel=1e-3, abs=1e-9)
    assert found


def test_adabits_is_infeasible_where_no_plan_of_its_kind_is() -> None:
    missing = 0
    for ready in programs():
        if plans_with_ends(ready):
            assert adabits(ready).found
        else:
            missing += 1
            with pytest.raises(InfeasibleError, match="AdaBits"):
                adabits(ready)
    assert missing


def slowest_decode(problem: Problem, assignment: Assignment) -> float:
    """Of a stage, with the link that leaves it."""
    alone = replace(problem, decode_micro_batches=10**6, gen_len=2, prefill_micro_batches=1)
    return evaluate(alone, assignment).decode_s / 10**6


def test_pipeedge_takes_the_most_faithful_precision_that_fits_and_the_fastest_slowest_stage() -> None:
    found = 0
    for ready in programs():
        uniform_plans = [(a, e) for a, e in plans_with_ends(ready) if len(set(a.option)) == 1]
        if not uniform_plans:
            with pytest.raises(InfeasibleError, match="PipeEdge"):
                pipeedge(ready)
            continue
        found += 1
        answer = pipeedge(ready).found
        best = min(e.sensitivity for _, e in uniform_plans)
        assert evaluate(answer.problem, answer.assignment).sensitivity == pytest.approx(best)
        last = len(answer.candidate.order) - 1
        rivals = [
            slowest_decode(answer.problem, a)
            for a, e in feasible(ready, answer.candidate, None)
            if a.option == answer.assignment.option and {0, last} <= set(a.device)
        ]
        assert slowest_decode(answer.problem, answer.assignment) <= min(rivals) * (1 + 1e-3)
    assert found


def test_uniform_is_the_fastest_even_split_within_the_budget() -> None:
    for ready in programs():
        devices, layers = len(ready.request.cluster.devices), ready.graph.num_layers
        shares = tuple(i * devices // layers for i in range(layers))
        try:
            found = uniform(ready).found
        except InfeasibleError:
            continue
        assert found.assignment.device == shares
        assert len(set(found.assignment.option)) == 1


def test_transfer_never_ends_slower_than_it_began_and_often_faster() -> None:
    faster = 0
    for ready in programs():
        for candidate in equal_sizes(ready):
            for start in least_lossy(ready, candidate):
                _, problem, assignment = improve(ready, start)
                before, after = evaluate(*start[1:]).objective, evaluate(problem, assignment).objective
                assert after <= before
                faster += after < before * (1 - 1e-6)
    assert faster > 3


def test_transfer_keeps_the_budget_that_adabits_keeps() -> None:
    kept = 0
    for seed in SEEDS:
        ready = random_program(seed, Target(1.0, explicit=True))
        try:
            answer = transfer(ready)
        except InfeasibleError:
            continue
        kept += 1
        assert evaluate(answer.found.problem, answer.found.assignment).sensitivity <= 1.0 + 1e-9
    assert kept


def test_the_layers_that_suffer_most_take_the_options_that_cost_least() -> None:
    ready = random_program(2, UNLIMITED)
    problem = least_problem(ready)
    worst = max(range(problem.num_layers), key=lambda i: max(problem.sensitivity[i]))
    found = realise(problem, ((0,) + (1,) * (problem.num_layers - 1), ()))
    faithful = min(range(2), key=lambda option: sum(row[option] for row in problem.sensitivity))
    assert len(set(problem.sensitivity)) == 1 or found.option[worst] == faithful or found.option.count(faithful) == 0


def least_problem(ready: Program) -> Problem:
    from llmpq.planning.candidates import build_problem

    return build_problem(ready, equal_sizes(ready)[0], None)


@pytest.mark.parametrize("name", ["assign-uniform", "assign-pipeedge", "assign-adabits", "assign-transfer"])
def test_where_each_places_the_layers_of_a_small_model(name: str, golden: Golden) -> None:
    cluster = two_cpus("2200 KiB", "1600 KiB")
    plain = program(llama_graph(num_layers=8, tied=False), cluster, Batch(8, 64, 32), target=Target(0.02))
    plan: Plan = run_passes(plain, parse_pipeline(f"derive-costs,estimate-sensitivity{{indicator=prior}},{name}")).require("plan")
    sizes = f"micro-batches {plan.pipeline.prefill_micro_batch} and {plan.pipeline.decode_micro_batch}"
    golden(f"{name.replace('-', '_')}.txt", "\n".join([sizes, *(f"{s.device}: {format_stage(s)}" for s in plan.stages)]))
