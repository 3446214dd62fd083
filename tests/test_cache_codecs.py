"""What a rounded KV cache holds, and what attention sees of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmpq.graph import Attention
from llmpq.precision import CACHE_PRECISIONS, CachePrecision
from llmpq.quantization.cache_codecs import CODECS, FP8_LARGEST, Held, as_cached
from llmpq.quantization.cache_kernel import cache_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def vectors(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@settings(deadline=None, max_examples=60)
@given(
    heads=st.integers(1, 3),
    positions=st.integers(1, 5),
    dim=st.integers(1, 37),
    scale=st.sampled_from((1e-3, 1.0, 300.0)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_int8_errs_by_half_a_step_of_each_head_and_token(
    heads: int, positions: int, dim: int, scale: float, dtype: torch.dtype, seed: int
) -> None:
    x = vectors(2, heads, positions, dim, dtype=dtype, scale=scale, seed=seed)
    seen = as_cached(x, "int8")
    largest = x.float().abs().amax(-1, keepdim=True)
    precision = torch.finfo(dtype).eps * largest  # of what comes out, and of the scale
    assert seen.dtype == dtype and seen.shape == x.shape
    allowed = largest / 254 * 1.01 + 1.5 * precision + torch.finfo(dtype).tiny
    assert bool(((seen.float() - x.float()).abs() <= allowed).all())


def test_int8_scales_are_of_one_head_of_one_token() -> None:
    x = vectors(1, 2, 3, 8)
    louder = x.clone()
    louder[0, 1, 2] *= 1000
    same, changed = as_cached(x, "int8"), as_cached(louder, "int8")
    assert torch.equal(same[0, 0], changed[0, 0]) and torch.equal(same[0, 1, :2], changed[0, 1, :2])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_vector_of_zeros_stays_one(precision: CachePrecision) -> None:
    for dtype in DTYPES:
        assert torch.equal(as_cached(torch.zeros(1, 1, 2, 4, dtype=dtype), precision), torch.zeros(1, 1, 2, 4, dtype=dtype))


@pytest.mark.skipif(cache_kernel() is None, reason="needs a C compiler")
def test_the_kernel_reads_any_slots_and_positions_bit_for_bit() -> None:
    kernel = cache_kernel()
    assert kernel is not None
    cache = held("int8", 5, 3, 11, 7, torch.bfloat16)
    cache.write(Held.EVERYTHING, cache.codec.encode(vectors(5, 3, 11, 7, dtype=torch.bfloat16)))
    for slots, positions in ((slice(5), 11), (slice(1, 4), 6), (slice(2, 3), 1)):
        codes, scale = (tensor[slots, :, :positions] for tensor in cache.tensors)
        assert kernel.accepts(codes, scale, torch.bfloat16) and not kernel.accepts(codes, scale, torch.float16)
        assert torch.equal(kernel.read(codes, scale), codes.to(torch.bfloat16) * scale.to(torch.bfloat16))


def test_fp8_is_e4m3_without_a_scale_and_cut_off_where_that_ends() -> None:
    x = vectors(1, 2, 3, 16, dtype=torch.bfloat16)
    assert torch.equal(as_cached(x, "fp8"), x.to(torch.float8_e4m3fn).to(torch.bfloat16))
    assert as_cached(torch.tensor([[1e4, -1e4]]), "fp8").tolist() == [[FP8_LARGEST, -FP8_LARGEST]]


def test_sixteen_bits_are_handed_on_as_they_are() -> None:
    x = vectors(1, 2, 3, 4)
    assert as_cached(x, "16") is x


def held(precision: CachePrecision, slots: int, heads: int, positions: int, dim: int, dtype: torch.dtype) -> Held:
    layout = CODECS[precision].layout(dim, dtype)
    return Held(CODECS[precision], dtype, tuple(torch.zeros(slots, heads, positions, size, dtype=kept) for kept, size in layout))


@pytest.mark.parametrize("precision", CACHE_PRECISIONS)
def test_what_is_written_is_read_rounded_once_wherever_it_lies_and_moves(precision: CachePrecision) -> None:
    every, x = slice(None), vectors(3, 2, 4, 5, dtype=torch.bfloat16)
    cache = held(precision, 4, 2, 6, 5, torch.bfloat16)
    cache.part(1, 3).write((every, every, slice(1, 5)), cache.codec.encode(x))
    assert torch.equal(cache.read()[1:, :, 1:5], as_cached(x, precision))
    rows, places = torch.tensor([0, 2]), torch.tensor([5, 3])
    one = vectors(2, 2, 1, 5, dtype=torch.bfloat16, seed=1)
    cache.write((rows, every, places), tuple(tensor[:, :, 0] for tensor in cache.codec.encode(one)))
    seen = cache.read((every, every, slice(6)))
    assert torch.equal(seen[0, :, 5], as_cached(one, precision)[0, :, 0])
    assert torch.equal(seen[2, :, 3], as_cached(one, precision)[1, :, 0])
    before = [tensor[3].clone() for tensor in cache.tensors]
    cache.move(3, 0, 4)
    assert all(torch.equal(tensor[0, :, :4], old[:, :4]) for tensor, old in zip(cache.tensors, before))


@pytest.mark.parametrize("precision", CACHE_PRECISIONS)
def test_the_bytes_of_a_cache_are_those_that_plans_count(precision: CachePrecision) -> None:
    attention = Attention(4, 2, 24, value_head_dim=16, cached_at=precision)
    sides = [held(precision, 3, 2, 7, dim, torch.bfloat16) for dim in (24, 16)]
    assert sum(side.nbytes for side in sides) == 3 * 7 * attention.kv_bytes_per_token
