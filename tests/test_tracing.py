"""The leaf tracer: traced and eager model agree exactly."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, masking_utils
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama

from llmpq.errors import TraceError
from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.tracing import INPUTS, decoder_layers, trace
from llmpq.fx import ops
from llmpq.graph import LayerGraph
from tests.tiny_models import CONFIGS, EAGER_ONLY, calls, run, tiny_model

CASES = [(family, how) for family in CONFIGS for how in ("sdpa", "eager") if how == "eager" or family not in EAGER_ONLY]
WINDOWED = ("mistral", "gemma3", "gemma2")


def eager_logits(model: PreTrainedModel, inputs: Any, cache: Cache) -> list[Tensor]:
    logits = []
    with torch.no_grad():
        for ids, mask, position_ids in inputs:
            positions = {} if model.config.model_type == "bloom" else {"position_ids": position_ids}
            logits.append(model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions).logits)
    return logits


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def traced_model(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, Any, LayerGraph]:
    family, implementation = request.param
    model = tiny_model(family, implementation)
    traced = trace(model)
    return model, traced, layer_graph(model, traced, family)


@pytest.mark.parametrize("padded", [False, True], ids=["equal lengths", "left padding"])
def test_prefill_and_cached_decode_equal_the_eager_model_exactly(traced_model: Any, padded: bool) -> None:
    model, traced, graph = traced_model
    inputs = calls(padded)
    assert largest_difference(run([traced], graph, inputs), eager_logits(model, inputs, DynamicCache())) == 0.0


@pytest.mark.parametrize("family", WINDOWED)
def test_a_sliding_window_cache_gives_the_same_within_rounding(family: str) -> None:
    """transformers' own cache drops what the window passed, so sums have fewer terms: equal to 1e-6, not bit for bit."""
    model = tiny_model(family)
    traced = trace(model)
    inputs = calls(padded=True)
    ours = run([traced], layer_graph(model, traced, family), inputs)
    assert largest_difference(ours, eager_logits(model, inputs, DynamicCache(config=model.config))) <= 1e-6


def test_without_padding_no_mask_is_needed(traced_model: Any) -> None:
    _, traced, graph = traced_model
    inputs = calls(padded=False)
    assert largest_difference(run([traced], graph, inputs), run([traced], graph, inputs, absent_mask=True)) == 0.0


def test_the_graph_has_the_four_inputs_and_calls_layers_by_their_paths(traced_model: Any) -> None:
    model, traced, _ = traced_model
    assert tuple(node.target for node in traced.graph.nodes if node.op == "placeholder") == INPUTS
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert [target for target in called if target in decoder_layers(model)] == list(decoder_layers(model))
    assert all(isinstance(model.get_submodule(target), nn.Module) for target in called)


def test_parameter_names_are_the_models_own_and_shared(traced_model: Any) -> None:
    model, traced, _ = traced_model
    ours, theirs = dict(traced.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)


def test_the_graph_does_not_depend_on_the_order_of_the_sets_that_models_iterate_over(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for backwards in (False, True):
        monkeypatch.setattr(
            modeling_gemma3, "set", lambda items, backwards=backwards: sorted({*items}, reverse=backwards), raising=False
        )
        texts.append(str(trace(tiny_model("gemma3")).graph))
    assert texts[0] == texts[1]


def test_layers_and_masks_are_the_only_things_that_know_the_window() -> None:
    traced = trace(tiny_model("gemma3"))
    windows = [node.kwargs["window"] for node in traced.graph.nodes if node.target is ops.attention_mask]
    assert sorted(windows, key=str) == [6, None]


def test_the_mask_builders_of_transformers_are_put_back_even_after_an_error() -> None:
    trace(tiny_model("llama"))
    broken = tiny_model("llama")
    forward = broken.model.forward
    broken.model.forward = lambda input_ids, **kwargs: forward(input_ids, **kwargs) if input_ids.sum() > 0 else None
    with pytest.raises(TraceError, match="LlamaForCausalLM cannot be traced: symbolically traced"):
        trace(broken)
    assert vars(modeling_llama)["create_causal_mask"] is masking_utils.create_causal_mask


def test_models_can_be_traced_from_several_threads() -> None:
    models = [tiny_model("llama") for _ in range(4)]
    texts: list[str] = []
    threads = [threading.Thread(target=lambda model=model: texts.append(str(trace(model).graph))) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 4 and len(set(texts)) == 1
    assert vars(modeling_llama)["create_causal_mask"] is masking_utils.create_causal_mask


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(TraceError, match=r"training mode; call model\.eval\(\) first"):
        trace(tiny_model("llama").train())


def test_a_module_without_a_list_of_layers_is_refused() -> None:
    with pytest.raises(TraceError, match=r"Sequential has no list of decoder layers; expected an nn\.ModuleList"):
        trace(nn.Sequential(nn.Linear(2, 2)).eval())


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(TraceError, match="LlamaModel has no language model head"):
        trace(tiny_model("llama").model)


def test_an_unknown_attention_implementation_is_refused() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(TraceError, match="'flex_attention' cannot be traced; build the model with one of sdpa, eager"):
        trace(model)
