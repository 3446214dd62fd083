"""The Python API: every command has its function, and answers as the command line does."""

import inspect
import json
import pydoc
import re
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import llmpq
from llmpq.cli import COMMANDS
from llmpq.errors import LlmpqWarning
from llmpq.printing import format_plan
from llmpq.serialize import to_json
from tests.command_line import CLUSTER, PLANNED, ROOT
from tests.conftest import CommandLine

BATCH = llmpq.Batch(8, 64, 32)
QUICK: dict[str, Any] = {"indicator": "prior"}
# command -> what does the same in Python
FUNCTIONS = {
    "compile": ["compile", "compile_plan"],
    "plan": ["make_plan"],
    "run": ["CompiledModel.generate"],
    "eval": ["evaluate"],
    "export": ["CompiledModel.export"],
    "serve": ["CompiledModel.vllm"],
    "profile": ["profile"],
    "validate": ["validate"],
    "verify": ["CompiledModel.smoke_test"],
    "report": ["write_report"],
    "simulate": ["simulate"],
    "max-context": ["max_context"],
    "max-batch": ["max_batch"],
    "explain": ["explain", "CompiledModel.explain"],
    "diff": ["diff"],
    "whatif": ["whatif"],
    "pareto": ["pareto"],
    "sensitivity": ["measure_sensitivity"],
    "solve": ["solve"],
}
COMMAND_LINE_ONLY = {"devices", "passes", "backends", "completion"}  # lists, and what a shell is told


def test_every_command_has_its_function() -> None:
    assert set(FUNCTIONS) | COMMAND_LINE_ONLY == set(COMMANDS)
    for names in FUNCTIONS.values():
        for name in names:
            owner, _, method = name.partition(".")
            assert callable(getattr(getattr(llmpq, owner), method) if method else getattr(llmpq, owner))


@pytest.mark.parametrize("name", llmpq.__all__)
def test_every_public_name_is_documented_and_typed(name: str) -> None:
    value = getattr(llmpq, name)
    assert value.__doc__ and not value.__doc__.startswith(f"{name}("), "a docstring of its own, not the one of dataclasses"
    if inspect.isfunction(value):
        assert "return" in value.__annotations__
        parameters = inspect.signature(value).parameters.values()
        assert all(item.annotation is not inspect.Parameter.empty for item in parameters)
    assert name in dir(llmpq)


def test_every_public_name_stands_in_the_reference() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^::: llmpq\.(\w+)$", page, re.M)) - {"errors"} == set(llmpq.__all__)


def test_the_help_of_the_package_says_what_there_is() -> None:
    text = pydoc.plain(pydoc.render_doc(llmpq))
    assert all(name in text for name in llmpq.__all__)


def same(found: Any, printed: str) -> None:
    assert json.loads(json.dumps(to_json(found))) == json.loads(printed)


def test_plans_and_their_differences(cli: CommandLine, tmp_path: Path) -> None:
    plan = llmpq.make_plan("demo", CLUSTER, BATCH, **QUICK)
    same(plan, cli("plan", "demo", *PLANNED, "--json").out)
    other = llmpq.make_plan("demo", "2xCPU", BATCH, **QUICK)
    paths = llmpq.save_plan(plan, tmp_path / "a.json"), llmpq.save_plan(other, tmp_path / "b.json")
    same(llmpq.diff(plan, other), cli("diff", *paths, "--json").out)
    same(llmpq.explain(paths[0], device="CPU:0"), cli("explain", paths[0], "--device", "CPU:0", "--json").out)
    assert llmpq.write_report(paths[0], tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_questions_about_many_plans(cli: CommandLine) -> None:
    words = ("demo", *PLANNED, "--json")
    changes = [("add", "1xCPU"), ("remove", "CPU:1")]
    found = llmpq.whatif("demo", CLUSTER, BATCH, changes, prices=["CPU=0.1"], **QUICK)
    same(found, cli("whatif", *words, "--add", "1xCPU", "--remove", "CPU:1", "--price", "CPU=0.1").out)
    same(llmpq.pareto("demo", CLUSTER, BATCH, points=2, **QUICK), cli("pareto", *words, "--points", 2).out)
    limits = llmpq.max_batch("demo", CLUSTER, BATCH, precisions="w4a16", **QUICK)
    same({"what": "largest batch", "limits": limits}, cli("max-batch", *words, "--precisions", "w4a16").out)
    limits = llmpq.max_context("demo", CLUSTER, BATCH, precisions="w4a16", **QUICK)
    same({"what": "longest context", "limits": limits}, cli("max-context", *words, "--precisions", "w4a16").out)


def test_simulated_service(cli: CommandLine) -> None:
    words = ("demo", "-c", "2xCPU", "--rate", 0.5, "--prompt-len", 64, "--gen-len", 32, "--indicator", "prior", "--requests", 20)
    found = llmpq.simulate("demo", "2xCPU", llmpq.Serving(0.5, 64, 32), requests=20, **QUICK)
    same(found, json.dumps(json.loads(cli("simulate", *words, "--json").out)["simulated"]))


def test_scores_of_a_text(cli: CommandLine) -> None:
    same(
        llmpq.evaluate("demo", "report", max_tokens=200),
        cli("eval", "demo", "--text", "report", "--max-tokens", 200, "--json").out,
    )


def test_values_say_what_they_are_in_a_line_and_in_full() -> None:
    plan = llmpq.make_plan("demo", CLUSTER, BATCH, **QUICK)
    assert re.fullmatch(r"Plan\('demo' on CPU:\d, CPU:\d: [\d.]+ tokens/s, \+0\.\d{4} nats per token\)", repr(plan))
    assert str(plan) == format_plan(plan) and "layers" in str(plan)
    cluster = llmpq.Cluster.load("2xT4,1xV100-32")
    assert str(cluster).splitlines()[0] == "cluster 2xT4,1xV100-32"
    assert [line.split()[0] for line in str(cluster).splitlines()[1:]] == ["T4:0", "T4:1", "V100-32:0"]
    assert str(llmpq.Cluster.load(CLUSTER)).splitlines()[1] == "  CPU:0 on host a: 5.8 MiB for the model, speed 0.5"


def test_a_compiled_model_is_a_table_where_rich_prints_it(mixed_out: Path) -> None:
    compiled = llmpq.load(mixed_out)
    assert repr(compiled) == f"CompiledModel({str(mixed_out)!r}: {compiled.plan!r})"
    console = Console(width=80, file=StringIO())
    console.print(compiled)
    assert "capacity" in console.file.getvalue()  # type: ignore[attr-defined]


def test_notices_are_warnings() -> None:
    with pytest.warns(LlmpqWarning, match="V100-32:0 cannot be used by vllm"):
        llmpq.make_plan("opt-1.3b", "1xT4,1xV100-32", llmpq.Batch(4, 64, 32), engine="vllm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llmpq.make_plan("demo", "2xCPU", BATCH, **QUICK)


def test_a_plan_on_disk_is_compiled(tmp_path: Path) -> None:
    plan = llmpq.make_plan("demo", CLUSTER, BATCH, **QUICK)
    path = llmpq.save_plan(plan, tmp_path / "plan.json")
    compiled = llmpq.compile_plan("demo", path, tmp_path / "out", quantizer="rtn", quality_check=False, **QUICK)
    assert compiled.plan.stages == plan.stages
    devices = {row.device for row in llmpq.validate(compiled, quick=True).rows}
    assert {stage.device for stage in plan.stages} <= devices


def test_a_sensitivity_and_a_bare_problem_are_answered_as_on_the_command_line(cli: CommandLine, tmp_path: Path) -> None:
    table = llmpq.measure_sensitivity("demo", "prior", "16,w4a16", "part")
    said = cli("sensitivity", "demo", "--indicator", "prior", "--precisions", "16,w4a16", "--granularity", "part", "--json")
    assert to_json(table) == json.loads(said.out) and "w4a16/16" in table.options
    problem = next((ROOT / "benchmarks" / "data" / "planning").glob("*.json"))
    assert llmpq.solve(problem).objective == pytest.approx(json.loads(cli("solve", problem).out)["objective"], rel=1e-4)


def test_plans_and_clusters_are_their_text_where_rich_prints_them(mixed_out: Path) -> None:
    plan = llmpq.load_plan(mixed_out)
    for value in (plan, plan.cluster):
        console = Console(width=200, file=StringIO())
        console.print(value)
        assert isinstance(console.file, StringIO) and console.file.getvalue() == f"{value}\n"
