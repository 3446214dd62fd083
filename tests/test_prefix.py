"""Prefix: computing from a layer on gives what computing from the start gives, in every family."""

import pytest
import torch

from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.tracing import trace
from llmpq.quantization.prefix import logits_of, next_prefix
from tests.tiny_models import CONFIGS, VOCABULARY, tiny_model


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_computing_from_any_layer_on_equals_computing_from_the_start(family: str) -> None:
    model = tiny_model(family)
    graph = layer_graph(model, trace(model), "tiny")
    windows = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = list(logits_of(model, graph, 0, (), windows))
        prefix = next_prefix(model, graph, 0, (), windows)
        for layer in range(1, graph.num_layers):
            for got, expected in zip(logits_of(model, graph, layer, prefix, windows), whole, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            prefix = next_prefix(model, graph, layer, prefix, windows)
    assert not any("forward" in vars(module) for module in model.modules())
