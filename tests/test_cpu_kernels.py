"""The kernels of w8a8 and of 16-bit linears for few tokens, against the definition in fp64, at odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from llmpq.errors import QuantizationError
from llmpq.precision import PRECISIONS
from llmpq.quantization.dense_kernel import DenseKernel, dense_kernel, unpacked
from llmpq.quantization.dense_linear import FEW_TOKENS, DenseLinear, use_dense_kernel
from llmpq.quantization.int8_kernel import Int8Kernel, OneDnnKernel
from llmpq.quantization.packed_kernels import packed_kernels
from llmpq.quantization.packing import pack
from llmpq.quantization.panel_product import panel_product
from llmpq.quantization.quantized_linear import prepare_linears
from llmpq.quantization.rounding import activation_codes, quantize, quantize_activation_per_token
from llmpq.quantization.vnni_kernel import vnni_kernel

VNNI, DENSE = vnni_kernel(), dense_kernel()
KERNELS: dict[str, Int8Kernel | None] = {"own": VNNI, "oneDNN": OneDnnKernel() if torch.cpu._is_vnni_supported() else None}
needs_dense = pytest.mark.skipif(DENSE is None, reason="no C compiler, or this CPU multiplies no bfloat16")


def kernel_named(name: str) -> Int8Kernel:
    found = KERNELS[name]
    if found is None:
        pytest.skip(f"this machine has no int8 kernel of {name}: it needs AVX-512 VNNI (and a C compiler, for our own)")
    return found


def dense() -> DenseKernel:
    assert DENSE is not None
    return DENSE


def expected(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    rounded, step = activation_codes(x)
    y = (rounded.double() @ codes.double().t()) * scale.double().t() * step.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 15, 16, 17, 64, 80, 131]),
    columns=st.sampled_from([1, 4, 7, 31, 32, 64, 130]),
    tokens=st.integers(1, 14),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_int8_products_are_exact_up_to_the_rounding_of_their_result(
    name: str, rows: int, columns: int, tokens: int, dtype: torch.dtype, with_bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kernel = kernel_named(name)
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    scale, x = (torch.rand(rows, 1) / 100 + 0.001).to(dtype), torch.randn(tokens, columns).to(dtype)
    bias = torch.randn(rows).to(dtype) if with_bias else None
    found, wanted = kernel.product(x, kernel.prepack(codes), scale, bias), expected(x, codes, scale, bias)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), wanted, rtol=2**-7, atol=1e-5)


@pytest.mark.skipif(VNNI is None, reason="no C compiler, or this CPU has no AVX-512 VNNI")
def test_our_int8_kernel_rounds_activations_as_the_definition_does() -> None:
    assert VNNI is not None
    for columns in (1, 30, 64, 257):
        x = torch.cat((torch.randn(9, columns) * torch.logspace(-6, 6, 9)[:, None], torch.zeros(1, columns))).bfloat16()
        codes, steps = VNNI._rounded(x)
        rounded = (codes[:, :columns].float() - 128) * steps[:, None]
        assert torch.equal(rounded.bfloat16(), quantize_activation_per_token(x))


@pytest.mark.skipif(VNNI is None, reason="no C compiler, or this CPU has no AVX-512 VNNI")
def test_the_int8_kernel_shares_rows_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VNNI is not None
    codes, x = torch.randint(-128, 128, (1003, 64), dtype=torch.int8), torch.randn(7, 64).bfloat16()
    scale, packed = torch.rand(1003, 1).bfloat16(), VNNI.prepack(codes)
    alone = VNNI.product(x, packed, scale, None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(VNNI.product(x, packed, scale, None), alone)


@needs_dense
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 83),
    columns=st.sampled_from([2, 8, 30, 32, 34, 100, 256]),
    tokens=st.integers(1, 14),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_both_dense_products_are_exact_up_to_the_rounding_of_their_result(
    rows: int, columns: int, tokens: int, with_bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, x = torch.randn(rows, columns).bfloat16(), torch.randn(tokens, columns).bfloat16()
    bias = torch.randn(rows).bfloat16() if with_bias else None
    wanted = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    size = functional.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    packed = dense().pack(weight)
    assert torch.equal(unpacked(packed, rows), weight)
    for found in (dense().packed_product(x, packed, rows, bias), dense().few_tokens(x, weight, bias)):
        assert bool(((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * size).all())


@needs_dense
def test_the_dense_kernel_takes_an_odd_number_of_columns_as_they_lie_in_the_file() -> None:
    weight, x = torch.randn(5, 33).bfloat16(), torch.randn(3, 33).bfloat16()
    assert torch.allclose(dense().few_tokens(x, weight, None), functional.linear(x, weight), rtol=2**-6, atol=1e-2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.head = nn.Embedding(40, 96), nn.Linear(96, 96), nn.Linear(96, 40, bias=False)
        self.bfloat16()
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.embedding(ids)))
        return logits


@needs_dense
@pytest.mark.parametrize("tokens", [0, 1, FEW_TOKENS, FEW_TOKENS + 1, 13])
def test_prepared_linears_give_the_same_result_and_hold_as_many_bytes(tokens: int) -> None:
    model, ids = Tied(), torch.arange(tokens)[None]
    wanted, weight = model(ids), model.inner.weight.detach().clone()
    prepare_linears(model)
    assert torch.allclose(model(ids), wanted, rtol=2**-5, atol=0.1)
    assert model(ids).shape == wanted.shape
    assert isinstance(model.inner, DenseLinear) and isinstance(model.head, DenseLinear)
    assert (model.inner.prepacked_bytes, model.inner._parameters["weight"].numel()) == (weight.nbytes, 0)  # type: ignore[union-attr]
    assert torch.equal(model.inner.weight, weight)
    assert model.head.prepacked_bytes == 0 and model.head.weight is model.embedding.weight


@needs_dense
def test_a_linear_that_was_prepared_for_bfloat16_says_so() -> None:
    linear = nn.Linear(8, 4, dtype=torch.bfloat16)
    prepare_linears(linear)
    with pytest.raises(QuantizationError, match=r"prepared for bfloat16; load the model again to compute in torch\.float32"):
        linear(torch.randn(1, 8))


def test_other_types_are_computed_by_torch() -> None:
    for dtype in (torch.float32, torch.float16):
        linear = nn.Linear(8, 4, dtype=dtype)
        x = torch.randn(2, 8).to(dtype)
        wanted = linear(x)
        prepare_linears(linear)
        assert torch.equal(linear(x), wanted)


def test_without_a_kernel_a_linear_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.quantization.dense_linear.dense_kernel", lambda: None)
    linear, x = nn.Linear(8, 4, dtype=torch.bfloat16), torch.randn(2, 8).bfloat16()
    weight, wanted = linear.weight, linear(x)
    prepare_linears(linear)
    assert linear.weight is weight
    assert torch.equal(linear(x), wanted)


@needs_dense
@pytest.mark.parametrize("is_shared", [False, True])
def test_strided_inputs_are_taken(is_shared: bool) -> None:
    linear = nn.Linear(64, 12, dtype=torch.bfloat16)
    x = torch.randn(64, 2).bfloat16().t()
    wanted = linear(x)
    use_dense_kernel(linear, is_shared)
    assert torch.allclose(linear(x), wanted, rtol=2**-6, atol=1e-2)


@needs_dense
def test_the_dense_kernel_shares_rows_out_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.randn(1003, 64).bfloat16(), torch.randn(7, 64).bfloat16()
    packed = dense().pack(weight)
    alone = dense().packed_product(x, packed, 1003, None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(dense().packed_product(x, packed, 1003, None), alone)


@needs_dense
@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["w4a16", "w8a16"]),
    rows=st.integers(1, 83),
    columns=st.sampled_from([64, 128, 320, 576]),
    tokens=st.one_of(st.integers(1, 14), st.integers(383, 390)),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_panels_are_the_dequantized_weight_and_its_product(
    name: str, rows: int, columns: int, tokens: int, half: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kernels = packed_kernels()
    assert kernels is not None
    weight = quantize(torch.randn(rows, columns), PRECISIONS[name], torch.float16 if half else torch.bfloat16)
    x, bias, bits = torch.randn(tokens, columns).bfloat16(), torch.randn(rows).bfloat16(), weight.precision.num_bits
    panels = panel_product(kernels, bits, weight.group_size, x.dtype)
    assert panels is not None
    found = panels.product(x, pack(weight)["weight_packed"], weight.scale, bits, bias)
    dequantized = weight.dequantize(torch.bfloat16)
    wanted = functional.linear(x.double(), dequantized.double(), bias.double())
    size = functional.linear(x.double().abs(), dequantized.double().abs(), bias.double().abs())
    assert bool(((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * size).all())
