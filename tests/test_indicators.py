"""Indicators on the demo model: calibration, errors, the store, and the order that they give."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from llmpq.frontend.models import calibration_text, data_path, load_tokenizer, resolve, token_ids, trace_source
from llmpq.graph import LayerGraph
from llmpq.layer_option import parse_option, parse_options
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.program import Calibration
from llmpq.quantization import scoring
from llmpq.quantization.fake_quantization import fake_quantized
from llmpq.quantization.indicators import INDICATORS, PROBES, estimate_sensitivity, probed_layers, raw_shares, table_of
from llmpq.quantization.original import load_original, log_probs_of
from llmpq.quantization.scoring import Measurements
from llmpq.sensitivity import SensitivityTable
from tests.values import llama_graph

DIRECTORY = data_path("models", "demo")
OPTIONS = ("16", "w8a8", "w8a16", "w4a16")
QUANTIZED = parse_precisions(OPTIONS[1:])
TOKENS = 1024


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    return trace_source(resolve("demo", weights=True))[1]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    ids = token_ids(load_tokenizer(DIRECTORY), calibration_text(None)[0])
    return Calibration(DIRECTORY, tuple(ids[:TOKENS]), "calibrate")


@pytest.fixture(scope="module")
def measured(graph: LayerGraph, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurements]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMPQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Measurements.of(graph, calibration)


@pytest.fixture(scope="module")
def tables(measured: Measurements) -> dict[str, SensitivityTable]:
    return {indicator: table_of(indicator, measured, parse_precisions(OPTIONS)) for indicator in INDICATORS}


def column(table: SensitivityTable, option: str) -> list[float]:
    return [row[table.options.index(option)] for row in table.rows]


@pytest.mark.parametrize("indicator", INDICATORS)
def test_sixteen_bits_cost_nothing_and_four_cost_more_than_eight(
    tables: dict[str, SensitivityTable], indicator: str, graph: LayerGraph
) -> None:
    table = tables[indicator]
    assert table.options == OPTIONS and len(table.rows) == graph.num_layers
    assert column(table, "16") == [0.0] * graph.num_layers
    assert 0 < sum(column(table, "w8a16")) < sum(column(table, "w4a16"))
    assert all(value > 0 for option in OPTIONS[1:] for value in column(table, option))
    assert table.errors is not None and all(error > 0 for row in table.errors for error in row[1:])
    assert table.indicator == indicator and "1024 tokens of calibrate" in table.provenance


@pytest.mark.parametrize("indicator", INDICATORS)
def test_the_layers_sum_to_the_divergence_with_all_of_them(
    tables: dict[str, SensitivityTable], indicator: str, measured: Measurements
) -> None:
    joint = measured.together([PRECISIONS["w4a16"]] * measured.graph.num_layers)
    assert sum(column(tables[indicator], "w4a16")) == pytest.approx(joint.divergence.mean, rel=1e-6)


def test_the_joint_divergence_is_that_of_the_plain_definition(measured: Measurements, graph: LayerGraph) -> None:
    model = load_original(DIRECTORY)
    every = dict.fromkeys(range(graph.num_layers), PRECISIONS["w4a16"])
    divergences: list[float] = []
    for window in measured.windows.tolist():
        original = log_probs_of(model)(window)
        with torch.inference_mode(), fake_quantized(model, graph, every):
            rounded = log_probs_of(model)(window)
        divergences.append(float((original.exp() * (original - rounded)).sum(-1).mean()))
    found = measured.together([PRECISIONS["w4a16"]] * graph.num_layers)
    assert found.divergence.mean == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    assert found.divergence.error is not None and 0 < found.divergence.error < found.divergence.mean


def test_one_layer_alone_is_what_it_is_without_the_shared_prefix(measured: Measurements) -> None:
    layers = list(range(measured.graph.num_layers))
    precisions = [PRECISIONS["w4a16" if layer == 7 else "16"] for layer in layers]
    shared = measured.alone([(7, PRECISIONS["w4a16"])])[0]
    assert shared.divergence.mean == pytest.approx(measured.together(precisions).divergence.mean, rel=1e-3)


def test_gradients_predict_the_measured_divergences_without_calibration(measured: Measurements) -> None:
    fisher, truth = (raw_shares(indicator, measured, QUANTIZED) for indicator in ("fisher", "measured"))
    for option in OPTIONS[1:]:
        ratios = torch.tensor(fisher[option]) / torch.tensor(truth[option])
        assert float(ratios.min()) > 0.5 and float(ratios.max()) < 2.0


def test_every_indicator_but_the_control_finds_the_first_layer_the_most_sensitive(tables: dict[str, SensitivityTable]) -> None:
    for indicator in ("fisher", "variance", "hessian", "measured"):
        assert max(column(tables[indicator], "w4a16")) == column(tables[indicator], "w4a16")[0]


def test_nothing_is_scored_twice(
    measured: Measurements, tables: dict[str, SensitivityTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: Path) -> None:
        raise AssertionError(f"{directory} was loaded again")

    monkeypatch.setattr(scoring, "load_original", refuse)
    again = Measurements(measured.graph, measured.calibration, measured.store)
    for indicator, table in tables.items():
        assert table_of(indicator, again, parse_precisions(OPTIONS)) == table


def test_scoring_that_was_interrupted_goes_on_where_it_stopped(
    graph: LayerGraph, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path))
    short = Calibration(DIRECTORY, calibration.token_ids[:64], "short")
    told: list[int] = []

    def interrupt(what: str, done: int, total: int) -> None:
        told.append(done)
        if done == 5 and len(told) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_sensitivity("measured", graph, parse_precisions("16,w4a16"), short, interrupt)
    stopped = len(told)
    table = estimate_sensitivity("measured", graph, parse_precisions("16,w4a16"), short, interrupt)
    assert told[stopped] == 6
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path / "other"))
    assert estimate_sensitivity("measured", graph, parse_precisions("16,w4a16"), short) == table


def test_few_positions_of_a_large_vocabulary_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "KEPT_BYTES", 4 * 2048 * 9)
    model = load_original(DIRECTORY)
    windows = torch.arange(60).view(3, 20)
    with torch.inference_mode():
        kept = scoring.kept_log_probs((model(input_ids=window[None]).logits[0] for window in windows), 3)
    assert [tuple(each.shape) for each in kept] == [(3, 2048)] * 3
    torch.testing.assert_close(kept[1], log_probs_of(model)(windows[1].tolist())[::7], rtol=0, atol=1e-5)


def test_windows_spread_over_the_text_and_fit_the_model() -> None:
    text = tuple(range(1000))
    windows = scoring.spread_windows(text, 10)
    assert windows.shape == (scoring.WINDOWS, 10) and windows[0, 0] == 0 and windows[-1, -1] == 999
    assert all(int(a[0]) < int(b[0]) for a, b in pairwise(windows))
    assert scoring.spread_windows(text[:7], 10).tolist() == [list(range(7))]


@pytest.mark.parametrize("layers", [1, 2, 3, 12, 80])
def test_probes_are_different_layers_spread_over_the_depth(layers: int) -> None:
    probes = probed_layers(llama_graph(num_layers=layers))
    assert probes == sorted(set(probes)) and len(probes) == min(PROBES, layers)
    assert all(0 <= probe < layers for probe in probes)


@pytest.mark.parametrize("indicator", ["fisher", "measured"])
def test_parts_sum_to_the_joint_divergence_and_agree_with_their_layer(measured: Measurements, indicator: str) -> None:
    table = table_of(indicator, measured, parse_options("16,w8a16,w4a16", "part"))
    joint = measured.together([PRECISIONS["w4a16"]] * measured.graph.num_layers).divergence.mean
    assert sum(column(table, "w4a16")) == pytest.approx(joint, rel=1e-6)
    attention, mlp = column(table, "w4a16/16"), column(table, "16/w4a16")
    assert [a + b for a, b in zip(attention, mlp)] == pytest.approx(column(table, "w4a16"))
    assert all(value > 0 for value in (*attention, *mlp))
    whole = table_of(indicator, measured, parse_options("16,w8a16,w4a16"))
    for layer, value in enumerate(column(whole, "w4a16")):
        assert 0.6 < column(table, "w4a16")[layer] / value < 1.6
    assert table.errors is not None and all(error > 0 for row in table.errors for error in row[1:])


def test_a_part_alone_is_what_it_is_without_the_shared_prefix(measured: Measurements) -> None:
    option = parse_option("w4a16/16")
    mixture = [option if layer == 5 else PRECISIONS["16"] for layer in range(measured.graph.num_layers)]
    (shared,) = measured.alone([(5, option)])
    assert shared.divergence.mean == pytest.approx(measured.together(mixture).divergence.mean, rel=1e-3)
