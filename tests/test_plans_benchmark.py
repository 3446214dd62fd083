"""benchmarks/plans.py on a tiny program, and in a process of its own."""

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmpq.program import Program, Target
from tests.test_candidates import planned
from tests.values import program, two_cpus

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "plans.py"
ROOMY = ("64 MiB", "64 MiB")
TIGHT = ("1000 KiB", "1000 KiB")


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plans_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))  # as where the script runs by itself
        spec.loader.exec_module(module)
    return module


def ready(memory: tuple[str, str], target: Target | None = None) -> Program:
    return planned(program(cluster=two_cpus(*memory), target=target or Target()))


def test_a_row_tells_the_plan_in_figures(plans: ModuleType) -> None:
    found = plans.row(ready(ROOMY), "assign-joint")
    assert found["stages"] == [{"device": "CPU:0", "layers": "0-3 16"}]
    assert found["proven"]
    assert found["notices"] == []
    assert found["tokens_per_s"] == pytest.approx(8 * 32 / (found["prefill_s"] + found["decode_s"]))


def test_a_row_without_a_plan_says_why(plans: ModuleType) -> None:
    found = plans.row(ready(("300 KiB", "300 KiB")), "assign-even")
    assert set(found) == {"name", "error"}
    assert "short" in found["error"]


def test_the_ladder_climbs_from_the_even_split_to_the_joint_plan(plans: ModuleType) -> None:
    steps = plans.ladder(ready(ROOMY, Target(budget=None)))
    speeds = [step["tokens_per_s"] for step in steps]
    assert len(steps) == 5
    assert all(b >= a * (1 - 2e-3) for a, b in pairwise(speeds))
    assert "even split" in steps[0]["step"]


def test_a_plan_beyond_the_default_budget_is_starred_and_the_joint_plan_shown_at_its_sensitivity(plans: ModuleType) -> None:
    tight = ready(TIGHT)
    even = plans.row(tight, "assign-even")
    assert even["sensitivity"] > (tight.request.target.budget or 0.0)
    joint = plans.row(plans.at_budget(tight, even["sensitivity"]), "assign-joint")
    assert joint["tokens_per_s"] >= even["tokens_per_s"] * (1 - 1e-3)
    rows = [even, {**joint, "at": even["sensitivity"]}]
    cells = list(plans.table({"model": "m", "cluster": "c", "engine": "e", "rows": rows}).columns[5].cells)
    assert cells[0].endswith("*")
    assert not cells[1].endswith("*")


def test_the_script_writes_machine_versions_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    arguments = ("--model", "opt-13b", "--cluster", "1xA100-80", "--precisions", "16", "--json", str(path))
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(path.read_text())
    assert {"machine", "versions", "workload", "cases"} <= set(report)
    (case,) = report["cases"]
    assert [entry["name"] for entry in case["rows"]] == ["assign-joint", "assign-hand", "assign-even", "assign-fastest"]
    assert "A100-80:0: 0-39 16" in done.stdout
