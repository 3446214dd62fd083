"""benchmarks/quality.py: allocations against brute force, and the plot."""

import random
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from llmpq.layer_option import mean_bits, parse_option
from llmpq.sensitivity import SensitivityTable

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
OPTIONS = ("w3a16", "w4a16", "w8a16", "16")


def benchmark_module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return import_module(name)


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    return benchmark_module("quality_allocations")


def random_table(seed: int, layers: int, options: tuple[str, ...] = OPTIONS) -> SensitivityTable:
    draw = random.Random(seed)
    bits = [mean_bits(parse_option(option)) for option in options]
    rows = tuple(tuple(draw.uniform(0.5, 2) * 2.0**-each if each < 16 else 0.0 for each in bits) for _ in range(layers))
    return SensitivityTable(options, rows, "test", "test")


def weight_bits(option: str, size: tuple[int, int]) -> int:
    chosen = parse_option(option)
    return chosen.of("attention").num_bits * size[0] + chosen.of("mlp").num_bits * size[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average", [3.0, 4.5, 6.0, 16.0])
@pytest.mark.parametrize("options", [OPTIONS, ("w3a16", "w4a16", "w3a16/w4a16", "w8a16/w3a16", "w8a16")], ids=["layer", "part"])
def test_an_allocation_is_the_best_of_all(quality: ModuleType, options: tuple[str, ...], seed: int, average: float) -> None:
    draw = random.Random(seed)
    sizes = [(draw.choice((128, 256)), draw.choice((128, 256, 384))) for _ in range(4)]
    table = random_table(seed, len(sizes), options)
    fitting = [
        chosen
        for chosen in product(options, repeat=len(sizes))
        if sum(weight_bits(option, size) for option, size in zip(chosen, sizes)) <= average * sum(map(sum, sizes))
    ]
    best = min(table.total(options) for options in fitting)
    found = quality.allocate(table, sizes, average)
    assert found in fitting and table.total(found) == pytest.approx(best)


def test_the_control_has_the_same_figures_in_another_order(quality: ModuleType) -> None:
    table = random_table(0, 12)
    shuffled = quality.shuffled(table, 1)
    assert sorted(shuffled.rows) == sorted(table.rows) and shuffled.rows != table.rows
    assert quality.shuffled(table, 1) == shuffled != quality.shuffled(table, 2)


def test_the_plot_shows_every_point_above_zero() -> None:
    drawn = benchmark_module("quality_plot")
    points = [drawn.Point("a", 1.0, 0.01, 0.001), drawn.Point("b", 2.0, 0.1, 0.01), drawn.Point("b", 3.0, -0.1, 0.01)]
    root = ElementTree.fromstring(drawn.plot(points, "x", "y"))
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2 + 2  # and the legend
    heights = [float(circle.get("cy", "nan")) for circle in circles[:2]]
    assert heights[1] < heights[0]
