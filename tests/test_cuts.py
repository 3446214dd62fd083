"""Cuts: layers that share more than the hidden state stay together, in the graph, in the rules, and against plans that differ."""

from dataclasses import replace

import pytest
from torch import Tensor, nn

from llmpq.errors import PassError
from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.tracing import trace
from llmpq.passes.annotate_graph import AnnotateGraph
from llmpq.planning.uncut import uncut_notice, uncut_rules
from tests.tiny_models import program_of, tiny_model


class Layer(nn.Module):
    """Chooses something of the hidden state, or uses what an earlier layer chose."""

    def __init__(self, chooses: bool) -> None:
        super().__init__()
        self.chooses = chooses
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        found = hidden.sigmoid() if self.chooses else chosen
        assert found is not None
        return hidden + self.linear(hidden) * found, found


class Model(nn.Module):
    def __init__(self, chooses: tuple[bool, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(map(Layer, chooses))
        self.head = nn.Linear(8, 10)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, chosen = self.embedding(ids), None
        for layer in self.layers:
            hidden, chosen = layer(hidden, chosen)
        out: Tensor = self.head(hidden)
        return out


def uncut(*chooses: bool) -> tuple[int, ...]:
    model = Model(chooses).eval()
    return layer_graph(model, trace(model), "chosen").uncut


@pytest.mark.parametrize(
    ("chooses", "expected"),
    [((True, True, True), ()), ((True, False, True, False), (1, 3)), ((True, False, False), (1, 2))],
)
def test_a_layer_that_reads_what_an_earlier_one_chose_runs_where_that_one_runs(
    chooses: tuple[bool, ...], expected: tuple[int, ...]
) -> None:
    assert uncut(*chooses) == expected


def test_what_is_handed_on_and_not_read_does_not_bind_layers() -> None:
    model = Model((True, True)).eval()
    layer = next(node for node in trace(model).graph.nodes if node.target == "layers.1")
    assert len(layer.all_input_nodes) == 1


def test_runs_of_such_layers_are_rules_and_a_notice() -> None:
    graph = replace(program_of(tiny_model("llama"), (("16",) * 4,)).graph, uncut=(1, 3))
    assert [rule.text for rule in uncut_rules(graph)] == [
        "layers[0:1].device == layers[1].device",
        "layers[2:3].device == layers[3].device",
    ]
    assert uncut_notice(graph) == "layers 0 to 1, 2 to 3 stay on one device: more than the hidden state passes between them"
    assert uncut_notice(replace(graph, uncut=())) is None


def test_a_plan_that_cuts_there_is_refused_with_the_rule_that_prevents_it() -> None:
    program = program_of(tiny_model("llama"), (("16",) * 2, ("16",) * 2))
    with pytest.raises(PassError, match=r"before layer 2.*layers\[1\].device == layers\[2\].device"):
        AnnotateGraph().apply(replace(program, graph=replace(program.graph, uncut=(2,))))
