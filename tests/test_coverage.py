"""benchmarks/coverage.py: a class per mechanism, and what the page says of the sweep."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MECHANISMS = {
    "BertLMHeadModel": "embeddings that cannot be traced, called whole",
    "RobertaForCausalLM": "positions behind padding_idx, tied bias, activations outside the module tree",
    "BartForCausalLM": "the decoder of an encoder-decoder, positions that count padding",
    "MptForCausalLM": "ALiBi",
    "GPTBigCodeForCausalLM": "multi-query, fused qkv",
    "CohereForCausalLM": "parallel attention",
    "Llama4ForCausalLM": "chunked attention",
    "DeepseekV3ForCausalLM": "latent attention, dense then experts, shared experts",
    "DeepseekV32ForCausalLM": "index keys in the cache, a linear whose weight is read",
    "GptOssForCausalLM": "sinks, biased experts",
    "Gemma3ForConditionalGeneration": "the text part of a multimodal model, two windows",
    "PhimoeForCausalLM": "a router that is a linear and returns more",
    "DbrxForCausalLM": "a loop over the experts that were hit, their matrices one below the other",
    "JetMoeForCausalLM": "tokens sorted by expert and split, attention by experts",
    "XmodForCausalLM": "tokens chosen by a mask",
    "Gemma3nForCausalLM": "keys and values that layers share, embeddings of the ids for every layer",
    "GlmMoeDsaForCausalLM": "a choice of keys that a later layer reads",
    "RoFormerForCausalLM": "a table of angles that every stage holds",
    "OpenAIGPTLMHeadModel": "no cache",
    "GraniteMoeForCausalLM": "tensors that transformers renames as it loads them",
}
COMPILED = ("RobertaForCausalLM", "GraniteMoeForCausalLM", "PhimoeForCausalLM", "RoFormerForCausalLM", "Gemma3nForCausalLM")
UNCUT = ("Gemma3nForCausalLM",)


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return {name: importlib.import_module(name) for name in ("coverage_models", "coverage_case")}
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", BENCHMARKS / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_class_of_each_mechanism_equals_eager_and_can_be_cut(benchmarks: dict[str, ModuleType], name: str) -> None:
    case = benchmarks["coverage_case"].check(name, (), compiles=name in COMPILED)
    assert case.reasons == {}
    assert case.two_stages == ("one device only" if name in UNCUT else "exact")
    assert (case.compiled is not None) == (name in COMPILED)


@pytest.mark.parametrize("name", ["MambaForCausalLM", "Lfm2ForCausalLM", "FalconH1ForCausalLM"])
def test_state_space_layers_are_refused_by_that_name(benchmarks: dict[str, ModuleType], name: str) -> None:
    case = benchmarks["coverage_case"].check(name, ())
    assert case.is_state_space
    assert list(case.reasons) == ["traced"]


def test_a_difference_beyond_rounding_is_a_failure(benchmarks: dict[str, ModuleType]) -> None:
    import torch

    difference = benchmarks["coverage_case"].difference
    assert difference([torch.ones(2)], [torch.ones(2)]) == "exact"
    assert difference([torch.ones(2) + 1e-6], [torch.ones(2)]) == "1e-06"
    for wrong in (torch.tensor([1.0, 1.1]), torch.tensor([1.0, float("nan")])):
        with pytest.raises(AssertionError, match="logits differ"):
            difference([wrong], [torch.ones(2)])


def test_every_class_of_the_mapping_is_swept_once(benchmarks: dict[str, ModuleType]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = benchmarks["coverage_models"].classes()
    assert set(classes) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    assert sum(map(len, classes.values())) == len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_totals_count_state_space_apart_and_in_the_denominator(script: ModuleType) -> None:
    steps = dict.fromkeys(script.STEPS, "exact")
    rows = {
        "A": {**steps, "reasons": {}},
        "B": {**steps, "decode": "1e-07", "two_stages": "one device only", "reasons": {}},
        "C": {"reasons": {"traced": "C: unsupported: state-space layers (conv)"}},
        "D": {"reasons": {"built": "KeyError: 'x'"}},
    }
    text = script.totals(rows)
    assert "2 of 4 classes (50.0%) work end to end, 1 of them bit for bit" in text
    assert "1 of those that work cannot be cut: one device only." in text
    assert "1 (25.0%) have state-space layers" in text
    assert "Without the state-space classes: 2 of 3 (66.7%)" in text


def test_the_page_is_what_the_results_say(script: ModuleType) -> None:
    rows = json.loads(script.RESULTS.read_text(encoding="utf-8"))["classes"]
    assert script.PAGE.read_text(encoding="utf-8") == script.page(rows)
