"""The assignment problem: its JSON, its validation, and the costs of an assignment worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmpq.errors import InputError
from llmpq.solver.problem import Assignment, EndCost, Problem, Row, evaluate, load_problem
from tests.random_problems import random_problem

PLANNING = Path(__file__).parent / "data" / "planning"
FILES = sorted(PLANNING.glob("*.json"))

TWO = Problem(
    options=("w4a16", "16"),
    devices=("T4:0", "V100:0"),
    layer_kind=(0, 0, 1),
    prefill_s=(((1.0, 2.0), (3.0, 4.0)), ((5.0, None), (6.0, 7.0))),
    decode_s=(((0.1, 0.2), (0.3, 0.4)), ((0.5, None), (0.6, 0.7))),
    layer_bytes=(((10, 20), (10, 20)), ((30, None), (30, 40))),
    first_stage=EndCost((0.5, 9.0), (0.05, 9.0), (5, 9)),
    last_stage=EndCost((9.0, 0.25), (9.0, 0.025), (9, 7)),
    link_prefill_s=((0.0, 2.0), (0.0, 0.0)),
    link_decode_s=((0.0, 0.5), (0.125, 0.0)),
    overlap=False,
    capacity_bytes=(35, 37),
    sensitivity=((1.0, 0.0), (2.0, 0.0), (4.0, 0.0)),
    sensitivity_budget=None,
    theta=0.5,
    prefill_micro_batches=3,
    decode_micro_batches=2,
    gen_len=11,
)
SPLIT = Assignment((0, 0, 1), (0, 1, 0))  # P = 0.5 + 1 + 2, 6 + 0.25; D = 0.05 + 0.1 + 0.2, 0.6 + 0.025


def document() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(TWO.to_json()))
    return value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_problem_survives_the_way_through_json(path: Path) -> None:
    problem = load_problem(path)
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_random_problems_survive_the_way_through_json() -> None:
    for seed in range(50):
        problem = random_problem(seed)
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_the_costs_of_a_split_are_those_worked_out_by_hand() -> None:
    evaluation = evaluate(TWO, SPLIT)
    stages = (3.5 + 2.0, 6.25)
    assert evaluation.prefill_s == pytest.approx(sum(stages) + 2 * max(stages))
    trips = (0.35 + 0.5, 0.625 + 0.125)
    assert evaluation.decode_s == pytest.approx(10 * max(sum(trips), 2 * max(trips)))
    assert evaluation.latency_s == pytest.approx(evaluation.prefill_s + evaluation.decode_s)
    assert evaluation.sensitivity == 5.0
    assert evaluation.objective == pytest.approx(evaluation.latency_s + 2.5)
    assert evaluation.bytes == (35, 37)
    assert evaluation.violations == ()


def test_overlap_takes_links_out_of_the_stages_but_not_out_of_the_trip() -> None:
    evaluation = evaluate(replace(TWO, overlap=True), SPLIT)
    assert evaluation.prefill_s == pytest.approx(3.5 + 2.0 + 6.25 + 2 * 6.25)
    assert evaluation.decode_s == pytest.approx(10 * max(1.6, 2 * 0.625))


@pytest.mark.parametrize(("decode_model", "seconds"), [("per_token_flush", 10 * (1.6 + 0.85)), ("llm_pq", 1.6 + 10 * 0.85)])
def test_the_other_decode_models_follow_their_formulas(decode_model: Any, seconds: float) -> None:
    assert evaluate(replace(TWO, decode_model=decode_model), SPLIT).decode_s == pytest.approx(seconds)


def test_one_device_pays_both_ends_and_its_own_return_link() -> None:
    problem = replace(TWO, link_decode_s=((0.0, 0.5), (0.125, 0.25)), capacity_bytes=(0, 1000))
    evaluation = evaluate(problem, Assignment((1, 1, 1), (0, 0, 0)))
    assert evaluation.bytes == (0, 10 + 10 + 30 + 9 + 7)
    assert evaluation.prefill_s == pytest.approx(3 * (9.0 + 0.25 + 3 + 3 + 6))
    assert evaluation.decode_s == pytest.approx(10 * 2 * (9.0 + 0.025 + 0.3 + 0.3 + 0.6 + 0.25))
    assert evaluation.violations == ()


def test_links_join_consecutive_used_devices_and_skip_idle_ones() -> None:
    problem = replace(
        random_problem(0),
        devices=("A:0", "B:0", "C:0"),
        layer_kind=(0, 0),
        options=("16",),
        prefill_s=(((1.0,),) * 3,),
        decode_s=(((1.0,),) * 3,),
        layer_bytes=(((1,),) * 3,),
        first_stage=EndCost((0.0,) * 3, (0.0,) * 3, (0,) * 3),
        last_stage=EndCost((0.0,) * 3, (0.0,) * 3, (0,) * 3),
        link_prefill_s=((0.0, 1.0, 32.0), (0.0, 0.0, 2.0), (0.0, 0.0, 0.0)),
        link_decode_s=((0.0,) * 3,) * 3,
        capacity_bytes=(9, -1, 9),
        sensitivity=((0.0,),) * 2,
        overlap=False,
        prefill_micro_batches=1,
        every_device_used=False,
        first_and_last_used=True,
        sensitivity_budget=None,
    )
    evaluation = evaluate(problem, Assignment((0, 2), (0, 0)))
    assert evaluation.prefill_s == 1 + 1 + 32
    assert evaluation.violations == ()  # an idle device may have less than no memory


def test_every_violation_is_named() -> None:
    problem = replace(TWO, sensitivity_budget=1.0, every_device_used=True, capacity_bytes=(34, 37))
    assert evaluate(problem, Assignment((1, 0, 0), (0, 0, 1))).violations == (
        "layer 1 on T4:0 comes after layer 0 on V100:0",
        "layer 2: 16 is unsupported on T4:0",
        "sensitivity 3 exceeds the budget 1",
    )
    assert evaluate(problem, SPLIT).violations == (
        "T4:0 holds 35 bytes, its capacity is 34",
        "sensitivity 5 exceeds the budget 1",
    )
    alone = evaluate(problem, Assignment((1, 1, 1), (1, 1, 1)))
    assert "T4:0 holds no layer and must be used" in alone.violations


def test_an_unsupported_cell_costs_infinity() -> None:
    assert evaluate(TWO, Assignment((0, 0, 0), (0, 0, 1))).objective == math.inf


def test_memory_has_no_tolerance_and_the_budget_only_that_of_rounding() -> None:
    assert evaluate(replace(TWO, capacity_bytes=(35, 36)), SPLIT).violations
    assert not evaluate(replace(TWO, sensitivity_budget=5.0 - 1e-12), SPLIT).violations
    assert evaluate(replace(TWO, sensitivity_budget=5.0 - 1e-6), SPLIT).violations


def test_unsupported_cells_are_nan_in_the_array() -> None:
    assert np.isnan(TWO.array("prefill_s")[1, 0, 1])
    assert np.nansum(TWO.array("layer_bytes")) == 10 + 20 + 10 + 20 + 30 + 30 + 40


@pytest.mark.parametrize(
    ("sense", "rhs", "holds"), [("<=", 3.0, True), ("<=", 2.9, False), (">=", 3.1, False), ("==", 3.0, True), ("==", 2.0, False)]
)
def test_a_row_compares_what_the_assignment_takes(sense: Any, rhs: float, holds: bool) -> None:
    row = Row("test", ((0, 0, 0, 1.0), (1, 0, 1, 2.0), (2, 0, 0, 64.0)), sense, rhs)
    assert row.holds(SPLIT) is holds


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "llmpq-problem-1", "format is 'llmpq-problem-1', expected 'llmpq-problem-2'"),
        ("devices", ["T4:0"], r"prefill_s\[0\] has 2 entries, expected 1"),
        ("devices", ["T4:0", "T4:0"], "devices has a name twice"),
        ("layer_kind", [0, 0], "sensitivity has 3 entries, expected 2"),
        ("layer_kind", [0, 0, 2], r"layer_kind\[2\] is 2, expected 0 to 1"),
        ("capacity_bytes", [1, 2, 3], "capacity_bytes has 3 entries, expected 2"),
        ("sensitivity", [[0.0, 1.0], [0.0, 1.0], [0.0]], r"sensitivity\[2\] has 1 entries, expected 2"),
        ("link_decode_s", [[0.0, -1.0], [0.0, 0.0]], r"link_decode_s\[0\]\[1\] is -1.0"),
        ("decode_s", [[[0.1, 0.2], [0.3, math.inf]], [[0.5, None], [0.6, 0.7]]], r"decode_s\[0\]\[1\]\[1\] is inf"),
        ("decode_s", [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.1], [0.6, 0.7]]], r"prefill_s and layer_bytes \[1\]\[0\]\[1\] is null"),
        ("gen_len", 0, "gen_len is 0; it must be at least 1"),
        ("theta", -1.0, "theta is -1.0"),
        ("options", [], "options is empty"),
        ("decode_model", "flush", "found 'flush', expected one of 'round_trip'"),
        ("overlap", 1, "found 1, expected bool"),
        ("speed", 1, "unknown key 'speed'"),
    ],
)
def test_a_wrong_document_names_the_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Problem.from_json(document() | {key: value})


def test_a_missing_key_is_named() -> None:
    wrong = document()
    del wrong["last_stage"]
    with pytest.raises(InputError, match="'last_stage' is missing"):
        Problem.from_json(wrong)


def test_a_problem_file_that_is_missing_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json' cannot be read"):
        load_problem(tmp_path / "nowhere.json")
    (tmp_path / "half.json").write_text('{"format": ')
    with pytest.raises(InputError, match=r"half\.json' is not JSON"):
        load_problem(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="found list, expected an object"):
        load_problem(tmp_path / "list.json")
