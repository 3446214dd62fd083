"""benchmarks/quality.py: allocations against brute force, and the plot."""

import random
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from llmpq.precision import PRECISIONS
from llmpq.sensitivity import SensitivityTable

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
OPTIONS = ("w3a16", "w4a16", "w8a16", "16")


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return import_module("quality")


def random_table(seed: int, layers: int) -> SensitivityTable:
    draw = random.Random(seed)
    rows = tuple((draw.uniform(1, 9), draw.uniform(0.5, 3), draw.uniform(0, 0.4), 0.0) for _ in range(layers))
    return SensitivityTable(OPTIONS, rows, "test", "test")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average", [3.0, 4.5, 6.0, 16.0])
def test_an_allocation_is_the_best_of_all(quality: ModuleType, seed: int, average: float) -> None:
    sizes = [random.Random(seed).choice((128, 256, 384)) for _ in range(5)]
    table = random_table(seed, len(sizes))
    fitting = [
        options
        for options in product(OPTIONS, repeat=len(sizes))
        if sum(PRECISIONS[option].num_bits * size for option, size in zip(options, sizes)) <= average * sum(sizes)
    ]
    best = min(table.total(options) for options in fitting)
    found = quality.allocate(table, sizes, average)
    assert found in fitting and table.total(found) == pytest.approx(best)


def test_the_control_has_the_same_figures_in_another_order(quality: ModuleType) -> None:
    table = random_table(0, 12)
    shuffled = quality.shuffled(table, 1)
    assert sorted(shuffled.rows) == sorted(table.rows) and shuffled.rows != table.rows
    assert quality.shuffled(table, 1) == shuffled != quality.shuffled(table, 2)


def test_the_plot_shows_every_point_above_zero(quality: ModuleType) -> None:
    points = [quality.Point("a", 1.0, 0.01, 0.001), quality.Point("b", 2.0, 0.1, 0.01), quality.Point("b", 3.0, -0.1, 0.01)]
    root = ElementTree.fromstring(quality.plot(points, "x", "y"))
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 2 + 2  # and the legend
    heights = [float(circle.get("cy", "nan")) for circle in circles[:2]]
    assert heights[1] < heights[0]
