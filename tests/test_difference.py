"""Two plans side by side: nothing between a plan and itself, every layer that differs, both ways the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmpq.answers.difference import difference
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.program import Program
from llmpq.serialize import dumps
from llmpq.workload import Batch, Serving
from tests.command_line import PLANNED
from tests.conftest import CommandLine
from tests.values import llama_graph, program, two_cpus

PIPELINE = "derive-costs,estimate-sensitivity{indicator=prior},"


def plan(assign: str, asked: Program | None = None) -> Plan:
    asked = asked or program(llama_graph(6, tied=False), two_cpus(), Batch(4, 32, 16))
    found: Plan = run_passes(asked, parse_pipeline(PIPELINE + assign)).require("plan")
    return found


@pytest.fixture(scope="module")
def pair() -> tuple[Plan, Plan]:
    return plan("assign-joint"), plan("assign-even")


def test_a_plan_does_not_differ_from_itself(pair: tuple[Plan, Plan]) -> None:
    for item in pair:
        found = difference(item, item)
        assert found.is_empty and not found.layers and not found.settings
        assert all(figure.ratio in (1.0, None) for figure in found.figures)


def test_exactly_the_layers_that_differ_are_told(pair: tuple[Plan, Plan]) -> None:
    first, second = ([(stage.device, option) for stage in item.stages for option in stage.options] for item in pair)
    told = {
        layer: (change.first, change.second)
        for change in difference(*pair).layers
        for layer in range(change.start, change.stop + 1)
    }
    assert told == {i: (a, b) for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b}
    assert told


def test_figures_are_those_of_the_plans(pair: tuple[Plan, Plan]) -> None:
    speed = difference(*pair).figures[0]
    assert (speed.first, speed.second) == tuple(item.tokens_per_s for item in pair)
    assert speed.ratio == pair[1].tokens_per_s / pair[0].tokens_per_s
    idle = next(device for device in difference(*pair).devices if device.device == "CPU:1")
    assert idle.first_layers is None and idle.first_bytes == 0 and idle.second_layers == (3, 5)


def test_backwards_it_says_the_opposite(pair: tuple[Plan, Plan]) -> None:
    there, back = difference(*pair), difference(*pair[::-1])
    assert [(change.start, change.stop, change.second, change.first) for change in back.layers] == [
        (change.start, change.stop, change.first, change.second) for change in there.layers
    ]


def test_models_of_other_lengths_and_other_workloads_are_compared_as_far_as_they_go(pair: tuple[Plan, Plan]) -> None:
    plain = program(llama_graph(4, tied=False), two_cpus())
    serving = plan("assign-joint", replace(plain, request=replace(plain.request, workload=Serving(1.0, 32, 16))))
    found = difference(pair[0], serving)
    assert [setting.name for setting in found.settings][:2] == ["workload", "sizes"]
    assert found.layers[-1].stop == 5 and found.layers[-1].second is None
    running = next(figure for figure in found.figures if figure.name == "running")
    assert running.first is None and running.second == serving.load.running and running.ratio is None


def test_the_command_prints_both_and_json(cli: CommandLine, tmp_path: Path, pair: tuple[Plan, Plan]) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, item in zip(paths, pair, strict=True):
        path.write_text(dumps(item))
    assert cli("diff", paths[0], paths[0]).out == "the plans are the same\n"
    table = cli("diff", *paths)
    assert table.code == 0 and "CPU:1" in table.out and "tokens/s" in table.out
    assert json.loads(cli("diff", *paths, "--json").out)["layers"]
    paths[1].write_text(cli("plan", "demo", *PLANNED, "--explain-memory", "--json").out)
    assert cli("diff", *paths).code == 0
