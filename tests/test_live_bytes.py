"""Live bytes of a stage: the formula against tensors counted while it runs."""

from dataclasses import replace

import pytest
import torch

from llmpq.costs.live_bytes import stage_bytes
from llmpq.frontend.models import resolve
from llmpq.graph import LayerKind
from llmpq.precision import PRECISIONS
from llmpq.profiling.live_tensors import LiveTensors
from llmpq.profiling.probe import Subject, lowered
from llmpq.profiling.profiler import subject_of
from llmpq.profiling.random_weights import fill
from llmpq.quantization.quantized_linear import prepare_linears
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action

MIB = 2**20
ROWS, PROMPT = 4, 150


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(resolve("demo", weights=False), "cpu")


@pytest.mark.parametrize("precision", ["16", "w8a8", "w4a16"])
def test_a_prefill_and_a_decode_step_hold_no_more_than_predicted_and_hardly_less(subject: Subject, precision: str) -> None:
    graph = subject.graph
    module = lowered(subject, (precision,) * graph.num_layers)
    fill(module, torch.bfloat16, torch.device("cpu"))
    prepare_linears(module)
    attention = {layer: graph.kind_of(layer).attention for layer in range(graph.num_layers)}
    stage = Stage(module.eval().requires_grad_(False), attention, torch.bfloat16)
    with LiveTensors(module.state_dict(keep_vars=True).values()) as meter:
        stage.reserve(ROWS, PROMPT + 1)
        for phase, length, tokens in (("P", PROMPT, PROMPT), ("D", PROMPT + 1, 1)):
            rows = tuple(Row(slot, slot, length) for slot in range(ROWS))
            stage.run(Step(Action(phase, 0), 0, rows), torch.ones(ROWS, tokens, dtype=torch.int64))  # type: ignore[arg-type]
    measured = meter.peak_bytes - meter.held_bytes - stage.cache_bytes
    layers = tuple((kind, PRECISIONS[precision]) for kind in graph.kinds)
    predicted = stage_bytes(graph, layers, (ROWS, PROMPT, PROMPT), in_place=True, is_first=True)
    assert measured <= predicted <= measured + 0.5 * MIB


def test_what_is_freed_is_no_longer_counted_and_views_are_counted_once() -> None:
    with LiveTensors() as meter:
        first = torch.zeros(1000, dtype=torch.uint8)
        assert first.view(10, 100).shape == (10, 100)
        del first
        torch.zeros(400, dtype=torch.uint8)
    assert meter.peak_bytes == 1000


def test_a_later_stage_keeps_what_it_was_sent_and_every_option_costs_its_own(subject: Subject) -> None:
    kind: LayerKind = subject.graph.kinds[0]

    def nbytes(*names: str, is_first: bool = True) -> int:
        layers = tuple((kind, PRECISIONS[name]) for name in names)
        return stage_bytes(subject.graph, layers, (2, 64, 64), True, is_first)

    assert nbytes("16", is_first=False) - nbytes("16") == 2 * 64 * subject.graph.hidden_size * 2
    assert nbytes("16", "w4a16") - nbytes("16") == 2 * max(x.in_features * x.out_features for x in kind.linears)
    assert nbytes("w8a8") > nbytes("16")
    ungated = replace(kind, linears=tuple(replace(x, fusion_group=x.name) for x in kind.linears))
    assert stage_bytes(subject.graph, ((ungated, PRECISIONS["16"]),), (2, 64, 64), True, True) > nbytes("16")
