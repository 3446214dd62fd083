"""The Pareto front: its points are the fastest within their loss, none beats another, and enumeration finds no better one."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from llmpq.answers.pareto import ParetoPoint, front, pareto
from llmpq.errors import InfeasibleError
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.program import Program, Target
from llmpq.workload import Batch, Serving
from tests.command_line import CLUSTER, WORKLOAD
from tests.conftest import CommandLine
from tests.random_programs import best_objective
from tests.values import llama_graph, program, two_cpus

PREPARE = "derive-costs,estimate-sensitivity{indicator=prior}"
GAP = 2e-4


def ready(memory: str = "900 KiB", layers: int = 4) -> Program:
    plain = program(llama_graph(layers, tied=False), two_cpus(memory, memory), Batch(2, 32, 16), "16,w4a16", Target(None))
    return run_passes(plain, parse_pipeline(PREPARE))


@pytest.fixture(scope="module")
def found() -> tuple[ParetoPoint, ...]:
    return pareto(ready())


def test_no_point_is_as_good_as_another_and_better(found: tuple[ParetoPoint, ...]) -> None:
    assert len(found) > 1
    for a, b in pairwise(found):
        assert a.sensitivity < b.sensitivity and a.tokens_per_s < b.tokens_per_s


def test_every_point_is_the_fastest_plan_within_its_loss_by_enumeration(found: tuple[ParetoPoint, ...]) -> None:
    asked = ready()
    for point in found:
        best = best_objective(asked, point.sensitivity * (1 + 1e-9))
        assert best is not None and point.plan.optimality.objective <= best * (1 + GAP)
    fastest = best_objective(asked, None)
    assert fastest is not None and found[-1].plan.optimality.objective <= fastest * (1 + GAP)


def test_what_lies_between_two_points_is_no_faster_than_the_next(found: tuple[ParetoPoint, ...]) -> None:
    """With few layers every loss that is possible is on the front, so nothing faster exists below the next point's loss."""
    asked = ready()
    for a, b in pairwise(found):
        best = best_objective(asked, b.sensitivity * (1 - 1e-6))
        assert best is not None and best >= a.plan.optimality.objective * (1 - GAP)


def test_fewer_points_keep_the_ends(found: tuple[ParetoPoint, ...]) -> None:
    short = pareto(ready(), points=2)
    assert len(short) == 2
    ends = [found[0], found[-1]]
    assert [point.sensitivity for point in short] == pytest.approx([point.sensitivity for point in ends])


def test_one_plan_that_is_best_in_both_is_the_whole_front() -> None:
    (only,) = pareto(ready("64 MiB"))
    assert only.sensitivity == 0.0 and only.memory_bytes == sum(item.total for item in only.plan.prediction.memory)


def test_the_front_drops_what_is_beaten(found: tuple[ParetoPoint, ...]) -> None:
    worse = replace(found[0], sensitivity=found[0].sensitivity + 1e-6, tokens_per_s=found[0].tokens_per_s * 0.9)
    assert front((worse, *found[::-1])) == found


def test_the_front_of_serving_goes_from_the_least_loss_to_the_fastest() -> None:
    plain = program(llama_graph(6, tied=False), two_cpus("1200 KiB", "1200 KiB"), precisions="16,w4a16", target=Target(None))
    request = replace(plain.request, workload=Serving(1.0, 32, 16))
    found = pareto(run_passes(replace(plain, request=request), parse_pipeline(PREPARE)))
    assert len(found) > 1
    for a, b in pairwise(found):
        assert a.sensitivity < b.sensitivity and a.tokens_per_s < b.tokens_per_s
    assert found[-1].tokens_per_s == found[-1].plan.load.tokens_per_s


def test_what_fits_at_no_loss_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="no plan fits, whatever its loss"):
        pareto(ready("150 KiB"))


def test_the_command_prints_a_table_and_json(cli: CommandLine) -> None:
    asked = ("pareto", "demo", "-c", CLUSTER, *WORKLOAD, "--indicator", "prior", "--points", 3)
    table, told = cli(*asked), json.loads(cli(*asked, "--json").out)
    assert table.code == 0 and "perplexity" in table.out and max(map(len, table.out.splitlines())) <= 80
    assert [row["sensitivity"] for row in told] == sorted(row["sensitivity"] for row in told)
    assert 1 <= len(told) <= 3
