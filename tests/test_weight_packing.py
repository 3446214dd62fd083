"""Packing: the inverse, compressed-tensors bit for bit, damaged tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.errors import CheckpointError
from llmpq.precision import PRECISIONS, Precision
from llmpq.quantization.packing import layout, pack, pack_codes, unpack, unpack_codes
from llmpq.quantization.rounding import quantize

INTEGER = [PRECISIONS[name] for name in ("w8a8", "w8a16", "w4a16", "w3a16")]
by_name = pytest.mark.parametrize("precision", INTEGER, ids=lambda precision: precision.name)


def codes(rows: int, columns: int, num_bits: int, seed: int = 0) -> torch.Tensor:
    half = 2 ** (num_bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-half, half, (rows, columns), generator=generator).to(torch.int8)


@given(rows=st.integers(1, 4), columns=st.integers(1, 200), num_bits=st.integers(2, 8), seed=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_unpacking_undoes_packing_at_every_width_and_row_length(rows: int, columns: int, num_bits: int, seed: int) -> None:
    original = codes(rows, columns, num_bits, seed)
    packed = pack_codes(original, num_bits)
    assert packed.shape == (rows, -(-columns * num_bits // 32))
    assert torch.equal(unpack_codes(packed, num_bits, columns), original)


@pytest.mark.parametrize("num_bits", [3, 4, 8])
@pytest.mark.parametrize("columns", [1, 10, 31, 32, 33, 128, 200])
def test_packed_words_are_those_of_compressed_tensors(num_bits: int, columns: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    original = codes(5, columns, num_bits)
    packed = pack_codes(original, num_bits)
    assert torch.equal(packed, pack_to_int32(original, num_bits))
    assert torch.equal(unpack_from_int32(packed, num_bits, original.shape), unpack_codes(packed, num_bits, columns))


def test_the_stream_is_little_endian_with_an_offset_of_half_the_range() -> None:
    assert pack_codes(torch.tensor([[-8, -7, 7]], dtype=torch.int8), 4).tolist() == [[0xF10]]
    assert pack_codes(torch.tensor([[3] * 11], dtype=torch.int8), 3).tolist() == [[-1, 1]]


@by_name
@pytest.mark.parametrize("columns", [32, 70, 96, 130, 256])
def test_a_quantized_weight_survives_the_way_to_disk_and_back(precision: Precision, columns: int) -> None:
    quantized = quantize(torch.randn(9, columns, generator=torch.Generator().manual_seed(1)), precision)
    tensors = pack(quantized)
    assert {suffix: (part.dtype, tuple(part.shape)) for suffix, part in tensors.items()} == layout(
        precision, 9, columns, torch.bfloat16
    )
    again = unpack(tensors, precision)
    assert torch.equal(again.codes, quantized.codes) and torch.equal(again.scale, quantized.scale)
    assert torch.equal(again.dequantize(), quantized.dequantize())


@by_name
def test_the_bytes_are_those_that_memory_planning_counts(precision: Precision) -> None:
    tensors = pack(quantize(torch.ones(8, 192), precision))
    counted = sum(part.nbytes for suffix, part in tensors.items() if suffix != "weight_shape")
    assert counted == precision.weight_bytes(8, 192)


def test_compressed_tensors_decompresses_what_we_pack() -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    quantized = quantize(torch.randn(8, 256, generator=torch.Generator().manual_seed(2)), PRECISIONS["w3a16"])
    weights = QuantizationArgs(num_bits=3, type="int", symmetric=True, strategy="group", group_size=128)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    theirs = PackedQuantizationCompressor.decompress(pack(quantized), scheme)["weight"]
    assert torch.equal(theirs, quantized.dequantize(torch.bfloat16))


def test_a_missing_tensor_is_named() -> None:
    tensors = pack(quantize(torch.ones(4, 64), PRECISIONS["w4a16"]))
    del tensors["weight_shape"]
    with pytest.raises(CheckpointError, match="weight_shape missing, found weight_packed, weight_scale for w4a16"):
        unpack(tensors, PRECISIONS["w4a16"])


def test_a_tensor_of_another_width_is_refused_with_both_shapes() -> None:
    tensors = pack(quantize(torch.ones(4, 64), PRECISIONS["w4a16"]))
    with pytest.raises(CheckpointError, match=r"weight_packed is torch.int32 \[4, 8\], expected torch.int32 \[4, 16\] for w8a16"):
        unpack(tensors, PRECISIONS["w8a16"])
