"""The variance indicator on the demo model, and the fake quantization it measures with."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from llmpq.frontend.models import calibration_text, data_path, load_tokenizer, resolve, token_ids, trace_source
from llmpq.graph import LayerGraph
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.program import Calibration
from llmpq.quantization import indicators
from llmpq.quantization.indicators import fake_quantized, variance
from llmpq.quantization.original import load_original, log_probs_of
from llmpq.quantization.rounding import quantize, quantize_activation_per_token
from llmpq.sensitivity import SensitivityTable

DIRECTORY = data_path("models", "demo")
OPTIONS = ("16", "w8a8", "w8a16", "w4a16")


@pytest.fixture(scope="module")
def graph() -> LayerGraph:
    return trace_source(resolve("demo", weights=True))[1]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(DIRECTORY, tuple(token_ids(load_tokenizer(DIRECTORY), calibration_text(None)[0])), "calibrate")


@pytest.fixture(scope="module")
def table(graph: LayerGraph, calibration: Calibration) -> SensitivityTable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indicators, "WINDOWS", 2)
        return variance(graph, parse_precisions(",".join(OPTIONS)), calibration)


def column(table: SensitivityTable, option: str) -> list[float]:
    return [row[table.options.index(option)] for row in table.rows]


def test_sixteen_bits_cost_nothing_and_four_cost_more_than_eight(table: SensitivityTable, graph: LayerGraph) -> None:
    assert table.options == OPTIONS and len(table.rows) == graph.num_layers
    assert column(table, "16") == [0.0] * graph.num_layers
    assert 0 < sum(column(table, "w8a16")) < sum(column(table, "w4a16"))
    assert all(value > 0 for option in OPTIONS[1:] for value in column(table, option))


def test_the_layers_sum_to_the_divergence_with_all_of_them(
    table: SensitivityTable, graph: LayerGraph, calibration: Calibration
) -> None:
    model = load_original(DIRECTORY)
    tokens = torch.tensor(calibration.token_ids)
    starts = torch.linspace(0, len(tokens) // 512 - 1, 2).round().long().tolist()
    divergences: list[float] = []
    for start in starts:
        ids = tokens[512 * start : 512 * start + 512].tolist()
        original = log_probs_of(model)(ids)
        with torch.inference_mode(), fake_quantized(model, graph, PRECISIONS["w4a16"]):
            rounded = log_probs_of(model)(ids)
        divergences.append(float((original.exp() * (original - rounded)).sum(-1).mean()))
    assert sum(column(table, "w4a16")) == pytest.approx(sum(divergences) / 2, rel=1e-3)


def test_few_positions_of_a_large_vocabulary_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicators, "KEPT_BYTES", 4 * 2048 * 9)
    model = load_original(DIRECTORY)
    windows = torch.arange(60).view(3, 20)
    with torch.inference_mode():
        kept = indicators._log_probs(model, windows)
    assert kept.shape == (9, 2048)
    torch.testing.assert_close(kept[3:6], log_probs_of(model)(windows[1].tolist())[::7], rtol=0, atol=1e-5)


def test_the_table_says_where_it_comes_from(table: SensitivityTable) -> None:
    assert table.indicator == "variance" and "1024 tokens of calibrate" in table.provenance


@pytest.mark.parametrize("option", OPTIONS[1:])
def test_fake_quantization_rounds_inside_the_block_and_restores_exactly(option: str, graph: LayerGraph) -> None:
    model: Any = load_original(DIRECTORY)
    precision = PRECISIONS[option]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linear = model.model.layers[3].mlp.up_proj
    x = torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = linear(x)
        with fake_quantized(model, graph, precision):
            weight = quantize(before["model.layers.3.mlp.up_proj.weight"], precision).dequantize()
            seen = quantize_activation_per_token(x) if precision.activation_bits == 8 else x
            assert torch.equal(linear(x), torch.nn.functional.linear(seen, weight))
        assert torch.equal(linear(x), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fake_quantization_restores_after_an_error(graph: LayerGraph) -> None:
    model: Any = load_original(DIRECTORY)
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.clone()
    with torch.inference_mode(), pytest.raises(KeyError), fake_quantized(model, graph, PRECISIONS["w4a16"]):
        assert not torch.equal(weight, before)
        raise KeyError
    assert torch.equal(weight, before)


def test_windows_spread_over_the_text_and_fit_the_model() -> None:
    text = tuple(range(1000))
    windows = indicators._windows(text, 10)
    assert windows.shape == (indicators.WINDOWS, 10) and windows[0, 0] == 0 and windows[-1, -1] == 999
    assert all(int(a[0]) < int(b[0]) for a, b in pairwise(windows))
    assert indicators._windows(text[:7], 10).tolist() == [list(range(7))]


def test_layers_share_a_divergence_in_proportion_to_their_noise() -> None:
    assert indicators._scaled([1.0, 3.0], 0.4) == pytest.approx([0.1, 0.3])
    assert indicators._scaled([0.0, 0.0], 0.4) == indicators._scaled([1.0, 3.0], 0.0) == [0.0, 0.0]
