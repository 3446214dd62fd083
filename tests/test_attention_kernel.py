"""Attention of one new token, against attention in fp64, and its place in the modules of transformers."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softmax
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmpq.backends.local import LocalBackend
from llmpq.fused import attention
from llmpq.fused.attention import NAME, use_attention_kernel
from llmpq.fused.attention_kernel import AttentionKernel, attention_kernel
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from tests.tiny_models import program_of, tiny_model

KERNEL = attention_kernel()
needs_kernel = pytest.mark.skipif(KERNEL is None, reason="no C compiler, or this CPU multiplies no bfloat16")


def kernel() -> AttentionKernel:
    assert KERNEL is not None
    return KERNEL


def expected(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The result in fp64 and the size of what was added up for it."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (tensor.double().repeat_interleave(groups, 1) for tensor in (key, value))
    scores = query.double() @ keys.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    weights = softmax(scores, -1)
    return (weights @ values).transpose(1, 2), (weights @ values.abs()).transpose(1, 2)


def inputs(
    slots: int, heads: int, kv_heads: int, positions: int, dim: int, value_dim: int, room: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """A query as projections leave it, keys and values as slots of a longer cache."""
    query = torch.randn(slots, 1, heads, dim).bfloat16().transpose(1, 2)
    key, value = (torch.randn(slots, kv_heads, positions + 3, size).bfloat16()[:, :, :positions] for size in (dim, value_dim))
    return query, key, value


@needs_kernel
@settings(max_examples=80, deadline=None)
@given(
    slots=st.integers(0, 3),
    kv_heads=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3, 4, 7, 8, 9, 12]),
    positions=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 130, 300]),
    dim=st.sampled_from([2, 30, 64, 80, 96, 128, 192, 256]),
    value_dim=st.sampled_from([None, 1, 16, 100, 512]),
    masked=st.sampled_from(["no", "rows", "all alike", "heads", "added", "added to heads"]),
    size=st.sampled_from([0.01, 1.0, 8.0]),
    seed=st.integers(0, 99),
)
def test_attention_is_exact_up_to_the_rounding_of_its_result(
    slots: int, kv_heads: int, groups: int, positions: int, dim: int, value_dim: int | None, masked: str, size: float, seed: int
) -> None:
    torch.manual_seed(seed)
    query, key, value = inputs(slots, kv_heads * groups, kv_heads, positions, dim, value_dim or dim)
    query, scale = query * size, dim**-0.5
    shape = (1 if masked == "all alike" else slots, kv_heads * groups if "heads" in masked else 1, 1, positions)
    mask = None if masked == "no" else torch.randn(shape).bfloat16() if "added" in masked else torch.rand(shape) < 0.6
    if mask is not None and mask.dtype == torch.bool:
        mask[..., seed % positions] = True
    assert kernel().accepts(query, key, value, mask)
    found = kernel().attend(query, key, value, mask, scale)
    wanted, added = expected(query, key, value, mask, scale)
    assert found.shape == (slots, 1, kv_heads * groups, value_dim or dim)
    assert found.is_contiguous()
    assert bool(((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 2e-5 * added).all())


@needs_kernel
@pytest.mark.parametrize("heads", [3, 8, 9])
def test_a_sequence_is_attended_to_alike_alone_and_in_longer_company(heads: int) -> None:
    torch.manual_seed(0)
    query, key, value = inputs(4, heads, 1, 203, 96, 80)
    lengths = torch.tensor([5, 64, 130, 203])
    mask = (torch.arange(203) < lengths[:, None])[:, None, None]
    together = kernel().attend(query, key, value, mask, 0.1)
    for row, length in enumerate(lengths.tolist()):
        own = slice(row, row + 1)
        alone = kernel().attend(query[own], key[own, :, :length], value[own, :, :length], None, 0.1)
        assert torch.equal(together[own], alone)


@needs_kernel
def test_hidden_positions_weigh_nothing_and_where_all_are_hidden_the_result_is_zero() -> None:
    query, key, value = inputs(1, 2, 1, 70, 64, 64)
    value[:, :, 40:] = 1e30
    seen = torch.arange(70)[None, None, None] < 40
    wanted = kernel().attend(query, key[:, :, :40], value[:, :, :40], None, 0.125)
    assert torch.equal(kernel().attend(query, key, value, seen, 0.125), wanted)
    added = torch.zeros(1, 1, 1, 70).masked_fill(~seen, -torch.inf).bfloat16()
    assert torch.equal(kernel().attend(query, key, value, added, 0.125), wanted)
    for all_hidden in (seen & False, torch.full_like(added, -torch.inf)):
        assert not kernel().attend(query, key, value, all_hidden, 0.125).any()


@needs_kernel
def test_what_is_no_number_does_not_get_lost() -> None:
    query, key, value = inputs(1, 1, 1, 20, 64, 64)
    key[0, 0, 7, 3] = torch.nan
    assert bool(kernel().attend(query, key, value, None, 0.125).isnan().all())


@needs_kernel
def test_heads_are_shared_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = inputs(5, 6, 3, 90, 64, 64)
    alone = kernel().attend(*given_, None, 0.125)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("llmpq.fused.attention_kernel.LEAST_PRODUCTS", 1)
    assert torch.equal(kernel().attend(*given_, None, 0.125), alone)


@needs_kernel
def test_what_the_kernel_cannot_read_it_does_not_accept() -> None:
    query, key, value = inputs(2, 4, 2, 9, 64, 64)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    assert kernel().accepts(query, key, value, mask)
    refused: tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], ...] = (
        (query.float(), key.float(), value.float(), None),
        (query.expand(2, 4, 2, 64), key, value, None),
        (query, key[:, :, :, ::2], value, None),
        (query, key[:1], value[:1], None),
        (query[:, :3], key, value, None),
        (query, key, value.transpose(2, 3).contiguous().transpose(2, 3), None),
        (query, key, value, mask.float()),
        (query, key, value, mask[..., :5]),
        (query, key, value, mask[0]),
        (*inputs(1, 1, 1, 9, 514, 514), None),
    )
    for case in refused:
        assert not kernel().accepts(*case)


def stepwise(family: str, prepared: bool) -> Tensor:
    """Log-probabilities of what follows prompts of unequal length, in bfloat16."""
    program = run_passes(program_of(tiny_model(family), [["16"] * 4]), parse_pipeline(LOWERING))
    (stage,) = program.require("stages")
    stage.to(torch.bfloat16)
    if prepared:
        use_attention_kernel(stage)
    backend = LocalBackend(program.require("plan"), program.graph, lambda _: stage, "bfloat16")
    prompts, more = [[5, 9, 11, 30, 7, 8, 4], [6], [12, 3, 40]], [[3, 50, 21, 9], [61, 17, 5, 44], [8, 8, 30, 2]]
    return torch.tensor(backend.log_probs(prompts, more))


@needs_kernel
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "opt", "gpt2", "gemma3", "phi3"])
def test_layers_of_every_kind_generate_by_the_kernel_as_they_did(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def counted(self: AttentionKernel, query: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return attend(self, query, *rest)

    attend = AttentionKernel.attend
    monkeypatch.setattr(AttentionKernel, "attend", counted)
    wanted = stepwise(family, prepared=False)
    assert not shapes
    found = stepwise(family, prepared=True)
    assert len(shapes) == 4 * 3  # layers, steps
    assert torch.allclose(found, wanted, atol=0.1)


@needs_kernel
def test_the_model_that_a_stage_shares_its_modules_with_keeps_its_attention() -> None:
    model = tiny_model("llama").bfloat16()
    before = model.config
    layer = copy.deepcopy(model.model.layers[0])
    layer.self_attn.config = before
    use_attention_kernel(layer)
    assert (layer.self_attn.config._attn_implementation, before._attn_implementation) == (NAME, "sdpa")


def test_layers_with_an_index_of_their_own_keep_theirs() -> None:
    layer = tiny_model("llama").model.layers[0]
    layer.self_attn.indexer = None
    use_attention_kernel(layer)
    assert layer.self_attn.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("with_kernel", [True, False])
def test_what_the_kernel_does_not_take_is_what_sdpa_makes_of_it(with_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_kernel:
        monkeypatch.setattr(attention, "attention_kernel", lambda: None)
    module = tiny_model("llama").model.layers[0].self_attn
    query, key, value = inputs(2, 4, 2, 9, 64, 64)
    bias = torch.randn(2, 4, 1, 9).bfloat16()
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((query.float(), key.float(), value.float(), None), {}),
        ((query.expand(2, 4, 9, 64), key, value, None), {}),
        ((query, key, value, None), {"position_bias": bias, "scaling": 0.5}),
        *([] if with_kernel else [((query, key, value, None), {})]),
    ]
    for case, options in cases:
        wanted, _ = sdpa_attention_forward(module, *case, **options)
        assert torch.equal(attention.attention(module, *case, **options)[0], wanted)
