"""ExampleCalls: what nodes return on shapes alone, and who reads contents rather than shapes."""

import pytest
import torch
from torch import Tensor, fx, nn

from llmpq.fx.example_calls import CALLS, ExampleCalls
from llmpq.fx.graphs import placeholders, reads_shape_only


class Angles(nn.Module):
    """A rotary embedding: of x it takes dtype and device."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.ones(4))
        self.frequencies: Tensor

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        return (position_ids[..., None] * self.frequencies).cos().to(x.dtype)


class Model(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.between = between

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        takes = (hidden, position_ids) if isinstance(self.between, Angles) else (hidden,)
        found: Tensor = self.between(*takes)
        return found


def node_of(module: fx.GraphModule, target: str) -> fx.Node:
    found: fx.Node = next(node for node in module.graph.nodes if node.target == target)
    return found


@pytest.mark.parametrize(
    ("between", "shape_only"),
    [
        (Angles(), True),
        (nn.Dropout(), False),
        (nn.Identity(), False),
        (nn.GELU(), False),
        (nn.Linear(8, 8), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_module_reads_shapes_only_where_it_neither_computes_with_nor_returns_what_it_is_given(
    between: nn.Module, shape_only: bool
) -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = Model(between).eval()
    traced = fx.GraphModule(model, Tracer().trace(model))
    source, user = node_of(traced, "embedding"), node_of(traced, "between")
    assert reads_shape_only(source, user, ExampleCalls(traced)) is shape_only


def test_results_are_those_of_calls_of_unlike_sizes_and_agree_where_sizes_do_not_matter() -> None:
    class Sizes(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids.ndim, input_ids.size(1), input_ids.float().max().item()  # type: ignore[return-value]

    traced = fx.symbolic_trace(Sizes())
    calls = ExampleCalls(traced)
    rank, tokens, largest = next(iter(reversed(traced.graph.nodes))).args[0]
    assert calls.agreed(rank) == 2
    assert calls.results(tokens) == tuple(sizes.tokens for sizes in CALLS)
    assert calls.agreed(tokens) is None
    assert calls.results(largest) is None
    ids = calls.results(placeholders(traced.graph)["input_ids"])
    assert ids is not None
    assert [tuple(found.shape) for found in ids] == [(sizes.batch, sizes.tokens) for sizes in CALLS]
