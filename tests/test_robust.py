"""Robustness: scaled speeds, regret as it is defined, and the plan of least regret."""

from dataclasses import replace

import pytest

from llmpq.errors import InputError
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning.candidates import build_problem
from llmpq.planning.robust import Robustness, choice_of, robustness, sampled_speeds, scaled
from llmpq.planning.search import search
from llmpq.program import Program, Target
from llmpq.solver.problem import evaluate
from llmpq.workload import Batch
from tests.values import llama_graph, program, two_cpus

SAMPLES = 6


def ready() -> Program:
    plain = program(llama_graph(num_layers=6, tied=False), two_cpus("2 MiB", "2 MiB"), Batch(4, 32, 16), target=Target(0.02))
    return run_passes(plain, parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior}"))


def joint(program: Program) -> Plan:
    plan: Plan = run_passes(program, parse_pipeline("assign-joint")).require("plan")
    return plan


def measured(factor: float = 2.0, seed: int = 0) -> Robustness:
    base = ready()
    return robustness(base, choice_of(base, joint(base)), 0.02, factor, SAMPLES, seed)


def test_a_plan_is_found_again_in_its_program() -> None:
    base = ready()
    plan = joint(base)
    candidate, assignment = choice_of(base, plan)
    assert evaluate(build_problem(base, candidate, None), assignment).objective == pytest.approx(plan.optimality.objective)


def test_a_device_of_twice_the_speed_needs_half_the_seconds_and_the_links_stay() -> None:
    base = ready()
    candidate, _ = choice_of(base, joint(base))
    order = candidate.order
    before = build_problem(base, candidate, None)
    after = build_problem(scaled(base, tuple(2.0 if j == order[0] else 1.0 for j in range(2))), candidate, None)
    assert after.prefill_s[0][0] == tuple(cell and cell / 2 for cell in before.prefill_s[0][0])
    assert after.decode_s[0][1:] == before.decode_s[0][1:]
    assert after.first_stage.prefill_s[0] == before.first_stage.prefill_s[0] / 2
    assert after.link_prefill_s == before.link_prefill_s


def test_speeds_stay_within_the_factor_and_depend_on_the_seed_alone() -> None:
    base = ready()
    drawn = list(sampled_speeds(base, 1.5, 50, seed=3))
    assert drawn == list(sampled_speeds(base, 1.5, 50, seed=3))
    assert drawn != list(sampled_speeds(base, 1.5, 50, seed=4))
    assert all(1 / 1.5 <= speed <= 1.5 for speeds in drawn for speed in speeds)


def test_at_the_speeds_predicted_there_is_nothing_to_regret() -> None:
    regret = measured(factor=1.0).regret(0)
    assert regret.worst <= 5e-3
    assert regret.median <= regret.percentile_95 <= regret.worst


def test_regret_is_against_the_best_plan_of_each_sample() -> None:
    base, found = ready(), measured()
    best = []
    for speeds in sampled_speeds(base, 2.0, SAMPLES, 0):
        optimum = search(scaled(base, speeds), 0.02, gap=1e-6)
        assert optimum is not None
        best.append(optimum.objective)
    expected = sorted(seconds / least - 1 for seconds, least in zip(found.seconds[0], best))
    assert found.regret(0).worst == pytest.approx(expected[-1], abs=6e-3)
    assert found.regret(0).median == pytest.approx(expected[2], abs=6e-3)
    assert found == measured()


def test_the_plan_of_least_regret_is_near_optimal_and_regrets_no_more() -> None:
    found = measured()
    for slack in (0.0, 0.05, 0.5):
        number = found.least_regret(slack)
        assert found.nominal[number] <= found.nominal[0] * (1 + slack)
        assert found.regret(number).percentile_95 <= found.regret(0).percentile_95


def test_the_pass_says_what_it_gave_up_for_what() -> None:
    base = replace(ready())
    result = run_passes(base, parse_pipeline(f"assign-robust{{factor=2.0,slack=0.3,samples={SAMPLES}}}"))
    plan: Plan = result.require("plan")
    assert plan.optimality.objective <= joint(base).optimality.objective * 1.3
    assert "of least regret at speeds off by up to 2" in result.notices[-1]
    assert plan.optimality.solver == "assign-robust"


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="expected a factor of at least 1"):
        measured(factor=0.5)
