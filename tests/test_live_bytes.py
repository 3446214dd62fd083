"""Live bytes of a stage: the formula against tensors counted while it runs."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from llmpq.costs.live_bytes import WIDENING, stage_bytes, weight_bytes
from llmpq.costs.memory import logits_bytes
from llmpq.frontend.models import resolve
from llmpq.fused.attention_kernel import attention_kernel
from llmpq.fused.operators import operators
from llmpq.fused.prepare import prepare_stage
from llmpq.graph import LayerKind
from llmpq.op_graph import Size
from llmpq.pieces import piece_rows
from llmpq.precision import PRECISIONS
from llmpq.profiling.live_tensors import LiveTensors
from llmpq.profiling.metered_stage import MeteredStage
from llmpq.profiling.probe import Subject, lowered
from llmpq.profiling.profiler import subject_of
from llmpq.profiling.random_weights import fill
from llmpq.quantization.dense_kernel import dense_kernel
from llmpq.quantization.int8_kernel import int8_kernel
from llmpq.quantization.packed_kernels import packed_kernels
from llmpq.quantization.vnni_kernel import vnni_kernel
from llmpq.runtime.batching import Row, Step
from llmpq.runtime.timeline import Action
from tests.tiny_models import tiny_config

MIB = 2**20
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gemma3": "Gemma3ForCausalLM",
    "bloom": "BloomForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
ROWS, PROMPT = 4, 150


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(resolve("demo", weights=False), "cpu")


@pytest.fixture
def kernels_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes this machine one of another kind, by what its C compiler and its instructions are."""

    def become(kind: str) -> None:
        for module in LOADING if kind != "this machine" else ():
            portable = partial(as_portable, module.load_library) if kind == "any instructions" else no_library
            monkeypatch.setattr(module, "load_library", portable)
        if kind != "this machine":
            monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has_vnni and kind == "no compiler")
            forget()

    has_vnni = torch.cpu._is_vnni_supported()
    yield become
    monkeypatch.undo()
    forget()


def as_portable(load: Callable[..., object], source: Path, flags: tuple[str, ...], *, this_cpu: bool = False) -> object:
    return load(source, flags)


def no_library(source: Path, flags: tuple[str, ...], *, this_cpu: bool = False) -> None:
    return None


def forget() -> None:
    for cached in (packed_kernels, dense_kernel, vnni_kernel, int8_kernel, operators, attention_kernel):
        cached.cache_clear()


MACHINES = ("this machine", "any instructions", "no compiler", "neither")
LOADING = tuple(
    sys.modules[cached.__module__] for cached in (packed_kernels, dense_kernel, vnni_kernel, operators, attention_kernel)
)


@pytest.mark.parametrize(
    ("precision", "machine"),
    [
        ("16", "this machine"),
        *(("w8a8", machine) for machine in MACHINES),
        *(("w4a16", machine) for machine in ("this machine", "any instructions", "neither")),
        ("w3a16", "this machine"),
        ("fp8", "neither"),
    ],
)
def test_a_prefill_and_a_decode_step_hold_no_more_than_predicted_and_hardly_less_whatever_the_machine_has(
    subject: Subject, precision: str, machine: str, kernels_of: Callable[[str], None]
) -> None:
    kernels_of(machine)
    graph = subject.graph
    module = lowered(subject, (precision,) * graph.num_layers)
    fill(module, torch.bfloat16, torch.device("cpu"))
    prepare_stage(module)
    attention = {layer: graph.kind_of(layer).attention for layer in range(graph.num_layers)}
    stage = MeteredStage(module.eval().requires_grad_(False), attention, torch.bfloat16)
    stage.reserve(ROWS, PROMPT + 1)
    for phase, length, tokens in (("P", PROMPT, PROMPT), ("D", PROMPT + 1, 1)):
        rows = tuple(Row(slot, slot, length) for slot in range(ROWS))
        stage.run(Step(Action(phase, 0), 0, rows), torch.ones(ROWS, tokens, dtype=torch.int64))  # type: ignore[arg-type]
    layers = tuple((kind, PRECISIONS[precision]) for kind in graph.kinds)
    predicted = stage_bytes(graph, layers, (ROWS, PROMPT, PROMPT), in_place=True, is_first=True)
    assert stage.live_bytes <= predicted <= stage.live_bytes + MIB


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
    assert nbytes("16", "w4a16") - nbytes("16") == 2 * 192 * 512 + WIDENING * piece_rows(192, 512) * 512
    assert nbytes("w8a8") > nbytes("16")


def test_the_largest_weight_is_charged_for_a_panel_of_it_alone(subject: Subject) -> None:
    kind, shape, precision = subject.graph.kinds[0], (1, 16, 16), PRECISIONS["w4a16"]
    largest = max(kind.linears, key=lambda linear: linear.in_features)
    grown = replace(kind, linears=(replace(largest, in_features=8192, out_features=28672),))
    charged = weight_bytes(subject.graph, grown, shape, precision, in_place=True)
    assert 2 * 64 * 8192 < charged < 2 * MIB
    assert weight_bytes(subject.graph, grown, shape, precision, in_place=False) > 7 * 8192 * 28672


TINY = {
    "llama": ("16", "w8a8", "w4a16"),
    "gpt2": ("16", "w8a8", "w4a16"),  # an activation function of many operations
    "gemma3": ("16", "w8a8"),  # two masks
    "bloom": ("16", "w4a16"),  # scores written out
    "mixtral": ("16", "w8a8", "w4a16"),  # experts
}


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("family", TINY)
def test_no_family_holds_more_than_predicted_with_kernels_or_without_padded_or_not(
    family: str, prepared: bool, tmp_path: Path, kernels_of: Callable[[str], None]
) -> None:
    config = tiny_config(family)
    config.update(
        {"max_position_embeddings": 256, "hidden_size": 64, "architectures": [ARCHITECTURES[family]], "dtype": "bfloat16"}
    )
    config.save_pretrained(tmp_path)
    subject = subject_of(resolve(str(tmp_path), weights=False), "cpu")
    graph = subject.graph
    kernels_of("this machine" if prepared else "neither")
    for precision in TINY[family]:
        module = lowered(subject, (precision,) * graph.num_layers)
        fill(module, torch.bfloat16, torch.device("cpu"))
        if prepared:
            prepare_stage(module)
        attention = {layer: graph.kind_of(layer).attention for layer in range(graph.num_layers)}
        stage = MeteredStage(module.eval().requires_grad_(False), attention, torch.bfloat16)
        for lengths in ((70, 70), (70, 31)):
            stage.reserve(2, 71)
            for phase, more, tokens in (("P", 0, max(lengths)), ("D", 1, 1)):
                rows = tuple(Row(slot, slot, length + more) for slot, length in enumerate(lengths))
                stage.run(Step(Action(phase, 0), 0, rows), torch.ones(2, tokens, dtype=torch.int64))  # type: ignore[arg-type]
        layers = tuple((kind, PRECISIONS[precision]) for kind in graph.kinds)
        predicted = stage_bytes(graph, layers, (2, 70, 71), in_place=True, is_first=True) + logits_bytes(graph, 2)
        assert stage.live_bytes <= predicted < max(3 * stage.live_bytes, stage.live_bytes + MIB)


def test_what_is_written_out_or_expanded_costs_memory(subject: Subject) -> None:
    kind, shape = subject.graph.kinds[0], (2, 64, 64)
    plain = stage_bytes(subject.graph, ((kind, PRECISIONS["16"]),), shape, True, True)
    activation = next(op for op in kind.ops.ops if op.detail == "silu mul")
    attention = next(op for op in kind.ops.ops if op.kind == "attention")
    changes = (
        (activation, replace(activation, detail="mul mul add tanh add mul")),
        (attention, replace(attention, detail="bmm add _softmax bmm")),
        (activation, replace(activation, writes=Size.of(4096, batch=1, context=1))),
    )
    for old, new in changes:
        ops = replace(kind.ops, ops=tuple(new if op is old else op for op in kind.ops.ops))
        changed = replace(kind, ops=ops)
        assert stage_bytes(subject.graph, ((changed, PRECISIONS["16"]),), shape, True, True) > plain
