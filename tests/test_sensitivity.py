"""SensitivityTable: the prior, and totals."""

from dataclasses import replace

import pytest

from llmpq.precision import parse_precisions
from llmpq.sensitivity import PRIOR_NATS, prior
from tests.values import llama_graph, llama_kind

PRECISIONS = parse_precisions("16,w8a8,w8a16,w4a16")


def test_the_prior_of_a_uniform_precision_is_its_published_joint_increase() -> None:
    table = prior(llama_graph(num_layers=7), PRECISIONS)
    for option in table.options:
        assert table.total((option,) * 7) == pytest.approx(PRIOR_NATS[option])


def test_the_prior_says_that_it_was_not_measured() -> None:
    assert "not measured on this model" in prior(llama_graph(), PRECISIONS).provenance


def test_larger_layers_carry_more_of_the_prior() -> None:
    graph = llama_graph(num_layers=2)
    uneven = replace(graph, kinds=(llama_kind(), llama_kind(ffn=512)), layer_kind=(0, 1))
    small, large = prior(uneven, PRECISIONS).rows
    assert small[3] < large[3]


def test_a_layer_that_cannot_be_quantized_costs_no_quality() -> None:
    graph = llama_graph(num_layers=1)
    kind = replace(graph.kinds[0], linears=tuple(replace(linear, experts=4) for linear in graph.kinds[0].linears))
    assert prior(replace(graph, kinds=(kind,)), PRECISIONS).rows == ((0.0, 0.0, 0.0, 0.0),)


def test_a_total_needs_an_option_for_every_layer() -> None:
    with pytest.raises(ValueError, match="zip"):
        prior(llama_graph(num_layers=3), PRECISIONS).total(("16", "16"))
