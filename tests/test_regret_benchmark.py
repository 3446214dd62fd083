"""benchmarks/regret.py: neighbours that may be run at all, and the arithmetic of its summary."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from llmpq.compiler import plan, prepare
from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Machine, Profile
from llmpq.plan import Plan
from llmpq.planning.candidates import build_problem
from llmpq.program import Program
from llmpq.serialize import to_json
from llmpq.solver.problem import evaluate
from llmpq.workload import Batch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ASKED = ("qwen2.5-7b", "1xL4,1xT4", Batch(8, 128, 16))
OPTIONS = {"precisions": "16,w8a16,w4a16", "indicator": "prior"}


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def neighbours() -> ModuleType:
    return load("neighbours", BENCHMARKS / "hetero" / "neighbours.py")


@pytest.fixture(scope="module")
def program() -> Program:
    return prepare(*ASKED, **OPTIONS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def chosen() -> Plan:
    made: Plan = plan(*ASKED, **OPTIONS).require("plan")  # type: ignore[arg-type]
    return made


@pytest.fixture
def regret(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load("regret", BENCHMARKS / "regret.py")


def test_twenty_neighbours_are_distinct_within_memory_and_budget_and_of_every_kind(
    neighbours: ModuleType, program: Program, chosen: Plan
) -> None:
    found = neighbours.neighbours(program, chosen, 20)
    places = [neighbours.place_of(program, neighbour.plan) for neighbour in found]
    assert len(found) == len({place.key for place in places}) == 20
    assert neighbours.place_of(program, chosen).key not in {place.key for place in places}
    assert {neighbour.kind for neighbour in found} == set(neighbours.KINDS)
    for place in places:
        problem = build_problem(program, place.candidate, chosen.quality.budget)
        assert not evaluate(problem, place.assignment).violations


def test_no_neighbour_is_predicted_to_be_faster_than_the_optimum(neighbours: ModuleType, program: Program, chosen: Plan) -> None:
    fastest = min(neighbour.plan.prediction.latency_s for neighbour in neighbours.neighbours(program, chosen, 12))
    assert fastest >= chosen.prediction.latency_s * (1 - 2e-3)


def test_regret_is_of_the_runs_that_were_not_used_to_choose_the_rivals(regret: ModuleType, chosen: Plan) -> None:
    rival = replace(chosen, pipelines=(replace(chosen.pipeline, decode_micro_batch=1, prefill_micro_batch=1),))
    entries = [{"kind": kind, "plan": to_json(made)} for kind, made in (("chosen", chosen), ("order", rival))]
    entries.append({"kind": "assign-even", "plan": to_json(rival)})

    def runs(*seconds: float) -> list[dict[str, object]]:
        return [{"seconds": s, "prefill_s": s / 2, "utilisation": {"L4:0": 0.5}, "others": 0.0} for s in seconds]

    cell = regret.Cell("1:1", "balanced", OPTIONS["precisions"])
    taken = {regret.key_of(chosen): runs(1.0, 2.0, 2.0, 2.2), regret.key_of(rival): runs(0.5, 1.8, 1.9, 3.0)}
    row = regret.sum_up(cell, entries, taken)
    assert row["regret"] == pytest.approx(1 - 1.9 / 2.0)
    assert row["regret_by_one_run"] == pytest.approx(0.5)
    assert row["baselines"] == {"assign-even": pytest.approx(0.5)}
    assert row["tokens_per_s"] == pytest.approx(8 * 9 / 2.0)
    assert row["busy"] == {"L4:0": 0.5}


def test_the_same_plan_on_equal_devices_exchanged_is_a_twin_and_no_rival(regret: ModuleType, chosen: Plan) -> None:
    """It would be as good as the chosen plan, so what it is apart is noise, not regret."""
    names = {"L4:0": "CPU:0", "T4:0": "CPU:1"}
    first = replace(chosen.pipeline, stages=tuple(replace(s, device=names[s.device]) for s in chosen.stages))
    second = replace(first, stages=tuple(replace(s, device={"CPU:0": "CPU:1", "CPU:1": "CPU:0"}[s.device]) for s in first.stages))
    plans = [replace(chosen, pipelines=(pipeline,)) for pipeline in (first, second)]
    equal, unlike = regret.Cell("1:1", "balanced", ""), regret.Cell("2:1", "balanced", "")
    made = {regret.key_of(each): each for each in plans}
    assert len(made) == 2
    own, twin = made
    runs = {key: [{"seconds": 1.0}] for key in made}
    assert regret.finalists(equal, made, own, runs) == (own, twin)
    assert regret.twin_key(equal, plans[0]) == regret.twin_key(equal, plans[1])
    assert regret.twin_key(unlike, plans[0]) != regret.twin_key(unlike, plans[1])


def test_rounds_of_a_profile_become_medians_that_all_rounds_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rounds = load("rounds", BENCHMARKS / "hetero" / "rounds.py")
    points = [Point("16", 1, tokens, 8, (Timing(1.0, 0.5, 2.0), None), *(Timing(1.0, 1.0, 1.0),) * 2) for tokens in (1, 8)]
    taken = Profile("CPU", 1.0, "bfloat16", "tiny", (), "", Machine("Linux", "a processor", 2, 1, ()), tuple(points))
    slower = replace(taken, points=tuple(point.scaled(2.0) for point in points))
    merged = rounds.merge([taken, slower, replace(slower, points=slower.points[:1])])
    assert [point.key for point in merged.points] == [points[0].key]
    assert merged.points[0].layers == (Timing(2.0, 0.5, 4.0), None)
    assert merged.points[0].rank is None


def test_a_cell_takes_what_its_shares_are_worth(regret: ModuleType) -> None:
    cell = next(cell for cell in regret.cells() if cell.cluster == "2:1")
    speeds = [device.speed for device in cell.spec({"CPU:1": 0.8}).devices]
    assert speeds == [1.0, pytest.approx(0.4)]
