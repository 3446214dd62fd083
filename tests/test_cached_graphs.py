"""Cached graphs: traced once, found again for the same architecture and versions, and planning from them without torch."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmpq.cache import cache_folder
from llmpq.errors import InputError
from llmpq.frontend import cached_graphs
from llmpq.frontend.cached_graphs import bundled_graph_path, format_layer_graph, graph_key, layer_graph_of
from llmpq.frontend.models import ModelSource, bundled_configurations, resolve, trace_source
from llmpq.graph import LayerGraph
from llmpq.serialize import loads
from tests.command_line import process
from tests.tiny_models import tiny_config, tiny_model

HEAVY = ("torch", "transformers", "huggingface_hub", "z3", "scipy")
IMPORTED = f"""
import sys
from llmpq.cli import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""
PLAN = ("--cluster", "3xA100-80", "--batch-size", "16", "--prompt-len", "256", "--gen-len", "32")


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache; the names of the models that are traced."""
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path / "cache"))
    seen: list[str] = []

    def watched(source: ModelSource) -> object:
        seen.append(source.name)
        return trace_source(source)

    monkeypatch.setattr(cached_graphs, "trace_source", watched)
    return seen


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_config("llama").save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def change(directory: Path, **values: object) -> None:
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


def test_a_directory_is_traced_once_and_takes_its_name_from_whoever_asks(traces: list[str], directory: Path) -> None:
    first = layer_graph_of(resolve(directory, weights=False))
    renamed = layer_graph_of(replace(resolve(directory, weights=False), name="another"))
    assert traces == ["tiny-llama"]
    assert first == trace_source(resolve(directory, weights=False))[1]
    assert renamed == replace(first, model="another")


def test_what_does_not_change_the_architecture_does_not_matter(traces: list[str], directory: Path) -> None:
    layer_graph_of(resolve(directory, weights=False))
    change(directory, dtype="float16", transformers_version="1", quantization_config={"quant_method": "compressed-tensors"})
    layer_graph_of(resolve(directory, weights=False))
    change(directory, num_hidden_layers=3)
    assert layer_graph_of(resolve(directory, weights=False)).num_layers == 3
    assert traces == ["tiny-llama"] * 2


@pytest.mark.parametrize("name", ["FORMAT", "version"])
def test_another_version_traces_again(traces: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = directory / "config.json"
    before = graph_key(config)
    monkeypatch.setattr(cached_graphs, name, "other" if name == "FORMAT" else lambda library: "other")
    assert graph_key(config) != before


@pytest.mark.parametrize("content", ["", '{"model": 3}'])
def test_a_file_that_cannot_be_read_is_traced_again_and_replaced(traces: list[str], directory: Path, content: str) -> None:
    source = resolve(directory, weights=False)
    found = layer_graph_of(source)
    (path,) = (cache_folder() / "graphs").iterdir()
    path.write_text(content)
    assert layer_graph_of(source) == found
    assert loads(LayerGraph, path.read_text()) == found
    assert traces == ["tiny-llama"] * 2


def test_a_cache_that_cannot_be_written_to_is_done_without(traces: list[str], directory: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert layer_graph_of(resolve(directory, weights=False)).num_layers == 4


def test_a_module_of_the_users_is_always_traced(traces: list[str]) -> None:
    model = tiny_model("llama")
    assert layer_graph_of(resolve(model, weights=False)).num_layers == 4
    assert traces == ["LlamaForCausalLM"]


def test_bundled_models_are_not_traced_and_neither_is_what_was_compiled_from_them(traces: list[str], tmp_path: Path) -> None:
    assert layer_graph_of(resolve("llama-3-8b", weights=False)).num_layers == 32
    config = tmp_path / "config.json"
    values = json.loads(bundled_configurations()["llama-3-8b"].read_text())
    config.write_text(json.dumps(values | {"dtype": "float16", "quantization_config": {}}))
    assert layer_graph_of(ModelSource("llama-3-8b", config=config)).num_layers == 32
    assert traces == []


def test_a_name_alone_is_not_enough(traces: list[str], directory: Path) -> None:
    graph = layer_graph_of(replace(resolve(directory, weights=False), name="llama-3-8b"))
    assert (graph.num_layers, traces) == (4, ["llama-3-8b"])


def test_a_configuration_that_is_not_json_is_told(traces: list[str], directory: Path) -> None:
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: is not JSON"):
        layer_graph_of(resolve(directory, weights=False))


def test_the_text_of_a_graph_is_one_line_that_reads_back() -> None:
    graph = loads(LayerGraph, bundled_graph_path("mixtral-8x7b").read_text())
    text = format_layer_graph(graph)
    assert text.count("\n") == 1 and loads(LayerGraph, text) == graph


@pytest.mark.parametrize("model", ["llama-3-70b", "demo"])
def test_planning_from_a_cached_graph_imports_nothing_heavy(model: str) -> None:
    outcome = process(sys.executable, "-c", IMPORTED, "plan", model, *PLAN, "--indicator", "prior", "--json")
    assert (outcome.code, outcome.err) == (0, "imported:\n")
    assert json.loads(outcome.out)["model"] == model
