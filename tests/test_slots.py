"""Sequences that come and go in slots of one cache get what transformers' generate gives each alone."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmpq.backends.local import LocalBackend
from llmpq.generation import SamplingParams
from llmpq.graph import Attention
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.precision import CachePrecision
from llmpq.quantization.rounded_cache import rounded_cache
from llmpq.runtime.kv_cache import KvCache
from llmpq.runtime.slots import ContinuingCache, FillingCache
from tests.tiny_models import program_of, tiny_model

LENGTHS = (7, 1, 5, 3, 7, 2)
NEW = 4


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "bloom", "opt", "falcon"])
def test_families_of_every_kind_of_mask_and_position_generate_what_transformers_generates(family: str) -> None:
    """Six prompts of unequal length in three slots, with an end of text on the way: rows leave, move and come in between."""
    model: Any = tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 64, (length,), generator=generator).tolist() for length in LENGTHS]
    expected = [generated(model, prompt) for prompt in prompts]
    eos = expected[2][1]
    program = run_passes(program_of(model, [["16"], ["16"] * 3]), parse_pipeline(LOWERING))
    backend = LocalBackend(program.require("plan"), program.graph, program.require("stages").__getitem__)
    got = [list(generation.token_ids) for generation in backend.generate(prompts, SamplingParams(NEW, eos_token_ids=(eos,)))]
    assert got == [tokens[: tokens.index(eos) + 1] if eos in tokens else tokens for tokens in expected]


def test_a_model_whose_positions_count_padding_gets_none() -> None:
    """Bart reads its positions from the length of the cache alone: every sequence then runs by itself."""
    shape = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 2}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model("bart", vocab_size=64, is_decoder=True, max_position_embeddings=64, **shape)
    ).eval()
    model.generation_config.forced_eos_token_id = None
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    prompts = [torch.randint(3, 64, (length,)).tolist() for length in LENGTHS]
    program = run_passes(program_of(model, [["16"], ["16"]]), parse_pipeline(LOWERING))
    backend = LocalBackend(program.require("plan"), program.graph, program.require("stages").__getitem__)
    got = [list(generation.token_ids) for generation in backend.generate(prompts, SamplingParams(NEW))]
    assert got == [generated(model, prompt) for prompt in prompts]
    assert len(set(map(tuple, got))) > 2


@pytest.mark.parametrize("kept", ["int8", "fp8"])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "opt"])
def test_a_rounded_cache_gives_step_by_step_what_one_pass_gives_and_what_transformers_gives(
    family: str, kept: CachePrecision
) -> None:
    """Prompts of unequal length in three slots, forced to go on; a rounding that falls the other way moves a logit a little."""
    model: Any = tiny_model(family)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(3, 64, (length + NEW,), generator=generator).tolist() for length in LENGTHS]
    program = run_passes(program_of(model, [["16"], ["16"] * 3]), parse_pipeline(LOWERING))
    graph, stages = program.graph.with_cache(kept), program.require("stages")
    backend = LocalBackend(program.require("plan"), graph, stages.__getitem__)
    stepped = backend.log_probs([tokens[:-NEW] for tokens in sequences], [tokens[-NEW:] for tokens in sequences])
    passed = [scores[-NEW:] for scores in backend.score(sequences)]
    assert torch.allclose(torch.tensor(stepped), torch.tensor(passed), atol=0.02)
    with rounded_cache(model, kept), torch.inference_mode():
        logits = [model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1) for tokens in sequences]
    expected = [row[torch.arange(len(row) - 1), tokens[1:]][-NEW:].tolist() for row, tokens in zip(logits, sequences)]
    assert torch.allclose(torch.tensor(passed), torch.tensor(expected), atol=0.02)
    plain = LocalBackend(program.require("plan"), program.graph, stages.__getitem__)
    unrounded = torch.tensor([scores[-NEW:] for scores in plain.score(sequences)])
    far, near = ((torch.tensor(passed) - torch.as_tensor(other)).abs().max() for other in (unrounded, expected))
    assert far > near


def generated(model: Any, prompt: list[int]) -> list[int]:
    """Greedily, without an end of text."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
    return found


def test_padded_prompts_fill_their_slots_from_the_front_and_continue_behind_their_own_past() -> None:
    cache = KvCache({3: Attention(2, 1, 2, index_dim=2)}, 3, 4, torch.float32)
    keys = torch.arange(12.0).view(2, 1, 3, 2)
    filling = FillingCache(cache, 1, (3, 2))
    assert filling.update(keys, -keys, 3)[0] is keys
    filling.update_indexer(keys[:, 0], 3)
    held, values = (each.read() for each in cache.slots(3, 0, 3))
    assert held[1:, 0, :, 0].tolist() == [[0, 2, 4, 0], [8, 10, 0, 0]]
    assert torch.equal(values, -held) and torch.equal(cache.index_slots(3, 0, 3), held[:, 0])
    continuing = ContinuingCache(cache, 1, (4, 3))
    new = torch.full((2, 1, 1, 2), 7.0)
    seen, _ = continuing.update(new, -new, 3)
    assert continuing.get_seq_length() == 3
    assert seen[:, 0, :, 0].tolist() == [[0, 2, 4, 7], [8, 10, 7, 0]]
    assert torch.equal(continuing.update_indexer(new[:, 0], 3), seen[:, 0])
    cache.move(2, 0, 3)
    assert torch.equal(cache.slots(3, 0, 1)[0].read()[0, :, :3], cache.slots(3, 2, 1)[0].read()[0, :, :3])


def test_sequences_of_one_length_continue_side_by_side() -> None:
    cache = KvCache({0: Attention(2, 1, 2, index_dim=2)}, 2, 3, torch.float32)
    new = torch.ones(2, 1, 1, 2)
    keys, _ = ContinuingCache(cache, 0, (2, 2)).update(new, new, 0)
    assert keys[:, 0, :, 0].tolist() == [[0, 1], [0, 1]]
    assert ContinuingCache(cache, 0, (3, 3)).update_indexer(new[:, 0], 0)[:, :, 0].tolist() == [[0, 0, 1], [0, 0, 1]]


def test_the_same_memory_is_divided_anew() -> None:
    cache = KvCache({0: Attention(2, 1, 2)}, 1, 12, torch.float32)
    cache.arrange(3, 4)
    assert cache.slots(0, 0, 3)[0].read().shape == (3, 1, 4, 2)
    with pytest.raises(AssertionError, match="more positions than were allocated"):
        cache.arrange(2, 7)
