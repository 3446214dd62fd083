"""QuantizedLinear and its kernels against the dequantized weight in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmpq.errors import QuantizationError
from llmpq.precision import PRECISIONS
from llmpq.quantization import int8_kernel
from llmpq.quantization.packed_kernels import FEW_TOKENS, PackedKernels, packed_kernels
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears
from llmpq.quantization.rounding import QuantizedWeight, quantize, quantize_activation_per_token

KERNELS = packed_kernels()
needs_compiler = pytest.mark.skipif(KERNELS is None, reason="no C compiler: the packed kernels are not there")
needs_int8 = pytest.mark.skipif(not int8_kernel.is_available(), reason="this CPU has no VNNI: w8a8 is dequantized")
SHAPES = ((96, 40), (128, 3), (256, 1), (512, 264), (160, 33), (1, 1))


def kernels() -> PackedKernels:
    assert KERNELS is not None
    return KERNELS


def loaded(
    name: str, columns: int, rows: int, bias: bool = False, dtype: torch.dtype = torch.bfloat16
) -> tuple[QuantizedLinear, QuantizedWeight]:
    torch.manual_seed(columns + rows)
    precision = PRECISIONS[name]
    weight = quantize(torch.randn(rows, columns), precision, dtype)
    linear = QuantizedLinear(columns, rows, bias, precision, dtype)
    tensors = pack(weight) | ({"bias": torch.randn(rows).to(dtype)} if bias else {})
    linear.load_state_dict(tensors, assign=True)
    return linear, weight


def assert_close(found: Tensor, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> None:
    """Against fp64 from the values that are stored; the result and, for many tokens, the weight are rounded once to 16 bits."""
    dense = weight.dequantize().double()
    wanted = functional.linear(x.double(), dense, None if bias is None else bias.double())
    size = functional.linear(x.double().abs(), dense.abs(), None if bias is None else bias.double().abs())
    assert found.shape == wanted.shape
    assert bool(((found.double() - wanted).abs() <= 2**-7 * size + 1e-6).all())


@needs_compiler
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 17])
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
@pytest.mark.parametrize("name", ["w3a16", "w4a16", "w8a16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weight_only_equals_the_dequantized_product(
    name: str, columns: int, rows: int, tokens: int, bias: bool, dtype: torch.dtype
) -> None:
    linear, weight = loaded(name, columns, rows, bias, dtype)
    x = torch.randn(tokens, columns).to(dtype)
    assert_close(linear(x), x, weight, linear._buffers["bias"])


@needs_compiler
@pytest.mark.parametrize("name", ["w3a16", "w4a16", "w8a16"])
def test_more_dimensions_and_strided_inputs_are_taken(name: str) -> None:
    linear, weight = loaded(name, 128, 24, True)
    x = torch.randn(128, 2, 3).bfloat16().permute(1, 2, 0)
    assert_close(linear(x), x, weight, linear._buffers["bias"])


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([3, 4, 8]),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 32, 64, 96, 128, 256]),
    rows=st.integers(1, 40),
    tokens=st.integers(1, 9),
    seed=st.integers(0, 99),
    half=st.booleans(),
)
def test_the_kernels_are_exact_up_to_the_order_of_sums(
    bits: int, groups: int, group: int, rows: int, tokens: int, seed: int, half: bool
) -> None:
    torch.manual_seed(seed)
    precision = next(p for p in PRECISIONS.values() if p.num_bits == bits and p.activation_bits == 16)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, groups * group), dtype=torch.int8)
    scale = (torch.rand(rows, groups) + 0.01).to(torch.float16 if half else torch.bfloat16)
    weight, x = QuantizedWeight(precision, codes, scale), torch.randn(tokens, groups * group).bfloat16()
    packed = pack(weight)["weight_packed"]
    assert kernels().accepts(bits, group, scale)
    wanted = x.double() @ weight.dequantize().double().t()
    size = x.double().abs() @ weight.dequantize().double().abs().t()
    assert bool(((kernels().product(x, packed, scale, bits).double() - wanted).abs() <= 1e-5 * size).all())
    if kernels().has_vectors(bits, group, x.dtype):
        rounded = kernels().rounded_product(x, packed, scale, bits)
        assert rounded.is_contiguous() and torch.equal(rounded, kernels().product(x, packed, scale, bits).bfloat16())
    out = torch.empty(rows, groups * group, dtype=torch.bfloat16)
    assert torch.equal(kernels().unpack(packed, scale, bits, out), weight.dequantize(torch.bfloat16))


@needs_compiler
def test_both_ways_of_the_c_file_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of bfloat16, where the CPU has them, and the portable loop; activations that bfloat16 holds exactly."""
    linear, _ = loaded("w4a16", 256, 64)
    packed, scale, x = linear.get_buffer("weight_packed"), linear.get_buffer("weight_scale"), torch.randn(6, 256).bfloat16()
    fast = kernels().product(x, packed, scale, 4)
    monkeypatch.setattr(PackedKernels, "has_vectors", lambda *_: False)
    assert torch.allclose(fast, kernels().product(x, packed, scale, 4), rtol=1e-4, atol=1e-4)


@needs_compiler
def test_rows_are_shared_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, _ = loaded("w4a16", 128, 1000)
    x = torch.randn(3, 128).bfloat16()
    alone = kernels().product(x, linear.get_buffer("weight_packed"), linear.get_buffer("weight_scale"), 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(kernels().product(x, linear.get_buffer("weight_packed"), linear.get_buffer("weight_scale"), 4), alone)


@needs_compiler
def test_arranging_is_a_permutation_within_groups() -> None:
    x, arrange = torch.arange(16.0).bfloat16().view(1, 16), kernels().arranged
    assert arrange(x, 8, 8).tolist() == x.tolist()
    assert arrange(x, 4, 8).tolist() == [[0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]]
    assert arrange(x, 3, 16).tolist() == [[0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]]


@pytest.mark.parametrize("name", ["w3a16", "w4a16", "w8a16", "w8a8"])
def test_fp32_is_the_definition_bit_for_bit(name: str) -> None:
    linear, weight = loaded(name, 128, 40, True)
    linear = linear.float()
    weight = QuantizedWeight(weight.precision, weight.codes, weight.scale.float())
    x = torch.randn(3, 128)
    rounded = quantize_activation_per_token(x) if name == "w8a8" else x
    assert torch.equal(linear(x), functional.linear(rounded, weight.dequantize(), linear._buffers["bias"]))


@pytest.mark.parametrize("name", ["w4a16", "w8a16"])
def test_without_a_compiler_the_weight_is_dequantized(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.quantization.quantized_linear.packed_kernels", lambda: None)
    linear, weight = loaded(name, 128, 24)
    x = torch.randn(2, 128).bfloat16()
    assert torch.equal(linear(x), functional.linear(x, weight.dequantize(torch.bfloat16)))


@needs_int8
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 3, 40])
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
def test_int8_equals_the_definition_of_w8a8(columns: int, rows: int, tokens: int, bias: bool) -> None:
    linear, weight = loaded("w8a8", columns, rows, bias)
    x = torch.randn(2, tokens, columns).bfloat16()
    prepare_linears(linear)
    assert_close(linear(x), quantize_activation_per_token(x.float()), weight, linear._buffers["bias"])


@needs_int8
def test_int8_codes_at_the_ends_of_their_range_do_not_saturate() -> None:
    codes = torch.full((32, 256), -128, dtype=torch.int8)
    weight = QuantizedWeight(PRECISIONS["w8a8"], codes, torch.ones(32, 1, dtype=torch.bfloat16))
    linear = QuantizedLinear(256, 32, False, PRECISIONS["w8a8"], torch.bfloat16)
    linear.load_state_dict(pack(weight), assign=True)
    prepare_linears(linear)
    assert torch.equal(linear(torch.ones(1, 256).bfloat16()).float(), torch.full((1, 32), -128.0 * 256))


@needs_int8
def test_a_prepared_linear_keeps_no_second_copy_and_says_what_it_cannot_do() -> None:
    linear, _ = loaded("w8a8", 128, 24)
    prepare_linears(linear)
    assert linear.get_buffer("weight").numel() == 0
    with pytest.raises(QuantizationError, match="load the model again to compute in fp32"):
        linear(torch.randn(1, 128))


def test_few_tokens_are_known_for_every_packed_width() -> None:
    assert set(FEW_TOKENS) == {3, 4, 8}


def test_loading_the_kernels_leaves_subnormal_numbers_alone() -> None:
    packed_kernels()
    assert float.fromhex("0x1p-1022") / 2 > 0
    assert float(torch.tensor(2.0**-1022, dtype=torch.float64) / 2) > 0


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("name", ["w3a16", "w4a16", "w8a16", "w8a8"])
def test_results_are_contiguous_since_strided_ones_make_what_follows_slow(name: str, tokens: int) -> None:
    linear, _ = loaded(name, 128, 24)
    prepare_linears(linear)
    assert linear(torch.randn(tokens, 1, 128).bfloat16()).is_contiguous()
