"""Pieces: what is held wide at a time is bounded, however large the weight, and linears in parts compute what they do whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from llmpq.pieces import LEAST_ROWS, LEAST_TOKENS, PANEL_BYTES, PIECE, PRODUCT, panel_rows, piece_rows, product_tokens
from llmpq.precision import PRECISIONS
from llmpq.quantization import quantized_linear
from llmpq.quantization.int8_kernel import OneDnnKernel
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear
from llmpq.quantization.rounding import activation_codes, codes_by_pieces, quantize, round_activation, round_by_pieces

SIZES = st.integers(1, 40_000)


@given(out_features=SIZES, in_features=SIZES)
def test_no_part_is_larger_than_its_bound_or_than_what_it_is_of(out_features: int, in_features: int) -> None:
    rows = panel_rows(out_features, in_features)
    assert 1 <= rows <= out_features
    assert rows <= LEAST_ROWS or 2 * rows * in_features <= PANEL_BYTES
    piece = piece_rows(out_features, in_features)
    assert piece == 1 or (piece * in_features <= PIECE and 8 * (piece - 1) < out_features)
    assert product_tokens(out_features) == LEAST_TOKENS or product_tokens(out_features) * out_features <= PRODUCT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["w8a8", "w4a16", "w3a16", "fp8"])
@pytest.mark.parametrize(("rows", "columns"), [(200, 8192), (40, 96), (515, 1024)])
def test_a_linear_in_panels_multiplies_the_dequantized_weight(
    name: str, rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(rows)
    monkeypatch.setattr(quantized_linear, "packed_kernels", lambda: None)
    weight = quantize(torch.randn(rows, columns), PRECISIONS[name], dtype)
    linear = QuantizedLinear(columns, rows, True, PRECISIONS[name], dtype)
    linear.load_state_dict({**pack(weight), "bias": torch.randn(rows).to(dtype)}, assign=True)
    x = torch.randn(9, columns).to(dtype)
    rounded = round_activation(x, PRECISIONS[name])
    dequantized, bias = weight.dequantize(dtype).double(), linear.get_buffer("bias").double()
    wanted = functional.linear(rounded.double(), dequantized, bias)
    size = functional.linear(rounded.double().abs(), dequantized.abs(), bias.abs())
    assert bool(((linear(x).double() - wanted).abs() <= 2**-7 * wanted.abs() + 1e-4 * size).all())


@given(tokens=st.integers(1, 20), columns=st.sampled_from([1, 300, PIECE // 3, PIECE + 1]))
def test_activations_rounded_piece_by_piece_are_those_rounded_at_once(tokens: int, columns: int) -> None:
    x = torch.randn(tokens, columns).bfloat16()
    for name in ("w4a16", "w8a8", "fp8"):
        assert torch.equal(round_by_pieces(x, PRECISIONS[name]), round_activation(x, PRECISIONS[name]))
    codes, (wanted, step) = torch.empty(tokens, columns, dtype=torch.uint8), activation_codes(x)
    assert torch.equal(codes_by_pieces(x, codes, 128), step)
    assert torch.equal(codes, (wanted + 128).to(torch.uint8))


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="oneDNN's int8 product saturates on a CPU without VNNI")
def test_onednns_product_of_many_tokens_is_that_of_each_alone() -> None:
    torch.manual_seed(0)
    kernel, weight = OneDnnKernel(), quantize(torch.randn(1100, 96), PRECISIONS["w8a8"])
    codes, x = kernel.prepack(weight.codes), torch.randn(2 * LEAST_TOKENS + 7, 96).bfloat16()

    def product(x: Tensor) -> Tensor:
        return kernel.product(x, codes, weight.scale, torch.ones(1100).bfloat16())

    assert torch.equal(product(x), torch.cat([product(token) for token in torch.split(x, 1)]))
