"""Modules and encoders of the user's, planned, compiled, loaded and run as a pipeline."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

import llmpq
from llmpq.errors import InputError, TraceError
from llmpq.frontend.build import build_model, trace_model
from llmpq.frontend.models import ModelSource
from llmpq.frontend.module_files import with_files, without_weights
from llmpq.frontend.tracing import trace
from llmpq.runtime.kv_cache import PassingCache

WORKLOAD = llmpq.Batch(batch_size=2, prompt_len=8, gen_len=1)
EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def own() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = example("own_module").Model()
    return model.eval()


def encoder() -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=96, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    model: Any = BertForMaskedLM(config)
    return model.eval()


def ids() -> Tensor:
    return torch.randint(5, 96, (2, 8), generator=torch.Generator().manual_seed(1))


def test_a_module_of_the_users_is_compiled_to_two_stages_loaded_again_and_runs(own: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in own.state_dict().items()}
    compiled = llmpq.compile(own, "2xCPU", WORKLOAD, precisions=("16",), assign="assign-even", out=tmp_path / "out")
    assert [len(stage.layers) for stage in compiled.plan.stages] == [3, 3]
    with torch.no_grad():
        expected = own(ids())
    found = compiled.forward(ids()).float()
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
    assert torch.equal(llmpq.load(tmp_path / "out", own).forward(ids()).float(), found)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with pytest.raises(InputError, match=r"was compiled from a Model of yours; give it: llmpq\.load\(directory, module\)"):
        llmpq.load(tmp_path / "out")


def test_a_modules_graph_knows_its_layers_its_attention_and_that_it_caches_nothing(own: nn.Module) -> None:
    graph = trace_model(own, "own")[1]
    assert (graph.num_layers, graph.hidden_size, graph.vocab_size, graph.head) == (6, 64, 256, "head")
    assert not graph.generates
    assert graph.kinds[0].attention.num_kv_heads == 0
    assert graph.kinds[0].kv_bytes_per_token == 0
    groups = [linear.fusion_group for linear in graph.kinds[0].linears if linear.name in ("query", "key", "value")]
    assert groups == ["query"] * 3
    assert graph.parameters == sum(parameter.numel() for parameter in own.parameters())


def test_an_encoder_equals_eager_with_and_without_padding() -> None:
    model, mask = encoder(), torch.ones(2, 8, dtype=torch.long)
    traced, positions = trace(model), torch.arange(8)[None].expand(2, 8)
    for padding in (0, 3):
        mask[1, 8 - padding :] = 0
        with torch.no_grad():
            expected = model(input_ids=ids(), attention_mask=mask).logits
            assert torch.equal(traced(ids(), mask, positions, PassingCache()), expected)


def test_an_encoder_is_compiled_by_the_class_its_config_names(tmp_path: Path) -> None:
    model = encoder()
    compiled = llmpq.compile(model, "2xCPU", WORKLOAD, precisions=("16",), assign="assign-even", out=tmp_path / "out")
    assert compiled.graph.architecture == "BertForMaskedLM"
    assert not compiled.graph.generates
    with torch.no_grad():
        expected = model(input_ids=ids()).logits
    found = llmpq.load(tmp_path / "out").forward(ids()).float()
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_a_module_without_weights_can_be_planned_but_not_compiled(own: nn.Module, tmp_path: Path) -> None:
    empty = without_weights(own)
    assert all(parameter.is_meta for parameter in empty.parameters())
    with pytest.raises(InputError, match="Model has parameters on the meta device"):
        with_files(ModelSource("Model", module=empty), tmp_path)


def test_a_source_that_is_no_module_stays_as_it_is(tmp_path: Path) -> None:
    source = ModelSource("llama", config=tmp_path / "config.json")
    assert with_files(source, tmp_path) is source


def test_an_encoder_with_a_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(TraceError, match="T5ForConditionalGeneration is an encoder with a decoder"):
        trace(T5ForConditionalGeneration(config).train(False))


def test_an_encoders_class_is_built_without_weights() -> None:
    config = encoder().config
    config.architectures = ["BertForMaskedLM"]
    assert type(build_model(config)) is BertForMaskedLM
