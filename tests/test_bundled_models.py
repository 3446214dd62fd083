"""Bundled models: published parameter counts, and the layer graphs that ship beside the configurations."""

from collections.abc import Iterator

import pytest

from llmpq.bundled import bundled_yaml
from llmpq.frontend.cached_graphs import bundled_graph_path, format_layer_graph
from llmpq.frontend.models import DEMO, bundled_configurations, data_path, resolve, trace_source
from llmpq.graph import LayerGraph
from llmpq.serialize import loads
from tests.command_line import ROOT

CONFIGURATIONS = tuple(bundled_configurations())
PAGE = ROOT / "docs" / "models.md"
START, END = "<!-- the table: tests/test_bundled_models.py writes it -->\n", "<!-- end of the table -->"
TOLERANCE = 0.01  # of the published figure


def shipped(name: str) -> LayerGraph:
    return loads(LayerGraph, bundled_graph_path(name).read_text(encoding="utf-8"), name)


@pytest.mark.parametrize("name", [*CONFIGURATIONS, DEMO])
def test_the_graph_that_ships_is_the_graph_that_tracing_gives(name: str, pytestconfig: pytest.Config) -> None:
    """`pytest tests/test_bundled_models.py --update-golden` traces all of them again and rewrites the files."""
    graph = trace_source(resolve(name, weights=False))[1]
    if pytestconfig.getoption("--update-golden"):
        bundled_graph_path(name).write_text(format_layer_graph(graph), encoding="utf-8")
    assert shipped(name) == graph, "run pytest tests/test_bundled_models.py --update-golden"
    assert bundled_graph_path(name).read_text(encoding="utf-8") == format_layer_graph(graph)


def test_no_graph_ships_without_its_model() -> None:
    assert {path.stem for path in data_path("graphs").glob("*.json")} == {*CONFIGURATIONS, DEMO}


def table() -> str:
    """A row per bundled configuration: parameters counted and published, and the source."""
    rows = ["| name | parameters | published, billions | source |", "|---|---|---|---|"]
    for name, entry in bundled_yaml("configs/published.yaml").items():
        rows.append(f"| `{name}` | {shipped(name).parameters:,} | {entry['billions']} | {entry['source']} |")
    return "\n".join(rows) + "\n"


def test_the_page_lists_every_model_with_its_figures(pytestconfig: pytest.Config) -> None:
    before, found = PAGE.read_text(encoding="utf-8").split(START)
    if pytestconfig.getoption("--update-golden"):
        PAGE.write_text(f"{before}{START}{table()}{END}{found.split(END)[1]}", encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0] == table(), "run pytest --update-golden"


def figures() -> Iterator[tuple[str, float]]:
    for name, entry in bundled_yaml("configs/published.yaml").items():
        yield name, entry["billions"] * 1e9


def test_every_configuration_has_a_published_figure_and_its_source() -> None:
    published = bundled_yaml("configs/published.yaml")
    assert tuple(published) == CONFIGURATIONS
    assert all(len(entry["source"]) > 10 for entry in published.values())


@pytest.mark.parametrize(("name", "parameters"), tuple(figures()))
def test_parameters_are_within_one_percent_of_the_published_figure(name: str, parameters: float) -> None:
    assert shipped(name).parameters == pytest.approx(parameters, rel=TOLERANCE)
