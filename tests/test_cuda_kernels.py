"""The layouts of torch's CUDA kernels on CPU, and which linears take them, on faked cards; what needs a card is marked."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from llmpq.precision import PRECISIONS
from llmpq.quantization import cuda_kernels
from llmpq.quantization.cuda_kernels import codes_of_tiles, int4_kernel, int8_product, swapped_nibbles, takes_int8
from llmpq.quantization.packing import pack, pack_codes, unpack_codes
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears
from llmpq.quantization.rounding import quantize, quantize_activation_per_token

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch's kernels cannot run here")
AMPERE, TURING, VOLTA = (8, 0), (7, 5), (7, 0)


def codes_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-8, 8, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def tiles_by_hand(nibbles: Tensor, inner: int) -> Tensor:
    """`_convert_weight_to_int4pack` word by word, as its kernel documents it; nibbles: [rows, columns / 2] uint8."""
    rows, half = nibbles.shape
    outer = 2 * half // (16 * inner)
    tiles = torch.zeros(rows // 8, outer, 32, inner // 2, dtype=torch.int64)
    for block in range(rows // 8):
        for step in range(outer):
            for lane in range(32):
                for word in range(inner // 2):
                    first = (step * inner + 2 * word) * 8 + lane % 4
                    v = [int(nibbles[block * 8 + lane // 4, first + 4 * i]) for i in range(4)]
                    high, low = (
                        sum((byte >> 4) << (4 * i) for i, byte in enumerate(v)),
                        sum((b & 15) << 4 * i for i, b in enumerate(v)),
                    )
                    tiles[block, step, lane, word] = high | low << 16
    return torch.where(tiles >= 2**31, tiles - 2**32, tiles).to(torch.int32)


@given(rows=st.sampled_from([8, 16, 24]), steps=st.integers(1, 2), inner=st.sampled_from([2, 4, 8]), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_tiles_become_the_codes_again(rows: int, steps: int, inner: int, seed: int) -> None:
    codes = codes_of(rows, 16 * inner * steps, seed)
    assert torch.equal(codes_of_tiles(tiles_by_hand(swapped_nibbles(pack_codes(codes, 4)), inner)), codes)


def test_the_even_column_of_a_pair_goes_to_the_high_half_of_its_byte() -> None:
    packed = pack_codes(torch.tensor([[-8, 7, -7, 6, 0, 0, 0, 0]], dtype=torch.int8), 4)
    assert swapped_nibbles(packed)[0, :2].tolist() == [0x0F, 0x1E]


@pytest.mark.parametrize(
    ("name", "rows", "columns", "dtype", "capability", "inner"),
    [
        ("w4a16", 2048, 5632, torch.bfloat16, AMPERE, 8),
        ("w4a16", 2048, 5632, torch.bfloat16, (9, 0), 8),
        ("w4a16", 24, 192, torch.bfloat16, AMPERE, 4),
        ("w4a16", 24, 96, torch.bfloat16, AMPERE, 2),
        ("w4a16", 2048, 5632, torch.bfloat16, TURING, None),
        ("w4a16", 2048, 5632, torch.float16, AMPERE, None),
        ("w4a16", 2052, 5632, torch.bfloat16, AMPERE, None),
        ("w4a16", 2048, 80, torch.bfloat16, AMPERE, None),
        ("w8a16", 2048, 5632, torch.bfloat16, AMPERE, None),
        ("w3a16", 2048, 5632, torch.bfloat16, AMPERE, None),
        ("w8a8", 2048, 5632, torch.bfloat16, AMPERE, None),
    ],
)
def test_int4_is_for_w4a16_in_bfloat16_on_ampere_and_later_in_whole_tiles(
    name: str, rows: int, columns: int, dtype: torch.dtype, capability: tuple[int, int], inner: int | None
) -> None:
    found = int4_kernel(PRECISIONS[name], rows, columns, dtype, capability)
    assert (None if found is None else found.inner_tiles) == inner


def test_int8_is_for_w8a8_from_turing_on_in_multiples_of_eight() -> None:
    assert takes_int8(PRECISIONS["w8a8"], 64, 40, TURING)
    assert not takes_int8(PRECISIONS["w8a8"], 64, 40, VOLTA)
    assert not takes_int8(PRECISIONS["w8a8"], 60, 40, TURING)
    assert not takes_int8(PRECISIONS["w8a8"], 64, 44, TURING)
    assert not takes_int8(PRECISIONS["w8a16"], 64, 40, TURING)


def test_what_is_no_nvidia_card_has_no_capability() -> None:
    assert cuda_kernels.capability_of(torch.device("cpu")) == (0, 0)


@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_products_are_the_definition_of_w8a8(tokens: int, bias: bool) -> None:
    """`_int_mm` exists on CPU too; the rows that few tokens are padded by leave no trace."""
    torch.manual_seed(0)
    weight, x = quantize(torch.randn(24, 64), PRECISIONS["w8a8"]), torch.randn(tokens, 64).bfloat16()
    added = torch.randn(24).bfloat16() if bias else None
    found = int8_product(x, weight.codes, weight.scale, added)
    exact = quantize_activation_per_token(x.float()).double() @ weight.dequantize().double().t()
    wanted = exact if added is None else exact + added.double()
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    ("name", "capability", "tokens", "wanted"),
    [
        ("w4a16", AMPERE, 4, "_weight_int4pack_mm"),
        ("w4a16", AMPERE, 400, "linear"),
        ("w4a16", TURING, 4, "linear"),
        ("w8a8", TURING, 4, "_int_mm"),
        ("w8a8", AMPERE, 400, "_int_mm"),
        ("w8a8", VOLTA, 4, "linear"),
        ("w8a16", AMPERE, 4, "linear"),
        ("w3a16", AMPERE, 4, "linear"),
    ],
)
def test_a_linear_on_a_card_is_multiplied_by_what_the_card_has(
    name: str, capability: tuple[int, int], tokens: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without values on a card that is not there: shapes, types and devices are checked as on a real one."""
    from torch.utils._python_dispatch import TorchDispatchMode

    called: list[str] = []

    class Listening(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.name())
            return func(*args, **(kwargs or {}))

    def by_definition(linear: QuantizedLinear, x: Tensor) -> Tensor:
        """Indexing asks for CUDA itself, so that unpacking cannot be followed in a build for CPUs."""
        called.append("aten::linear")
        return x.new_empty(len(x), linear.out_features)

    monkeypatch.setattr(QuantizedLinear, "_by_definition", by_definition)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        linear = QuantizedLinear(256, 64, True, PRECISIONS[name], torch.bfloat16, "cuda")
        prepare_linears(linear)
        with Listening():  # type: ignore[no-untyped-call]
            y = linear(torch.empty(1, tokens, 256, dtype=torch.bfloat16, device="cuda"))
    assert (tuple(y.shape), y.dtype, y.device.type) == ((1, tokens, 64), torch.bfloat16, "cuda")
    products = {call.removeprefix("aten::") for call in called} & {"_weight_int4pack_mm", "_int_mm", "linear", "addmm", "mm"}
    assert {"linear" if product in ("addmm", "mm") else product for product in products} == {wanted}


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("columns", [96, 192, 1024])
def test_torch_lays_tiles_out_as_they_are_read_here(columns: int) -> None:
    codes = codes_of(64, columns)
    kernel = int4_kernel(PRECISIONS["w4a16"], 64, columns, torch.bfloat16, AMPERE)
    assert kernel is not None
    tiles, _ = kernel.prepack(pack_codes(codes, 4).cuda(), torch.ones(64, 1).cuda())
    assert torch.equal(codes_of_tiles(tiles).cpu(), codes)


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("tokens", [1, 5, 32, 200])
@pytest.mark.parametrize("name", ["w3a16", "w4a16", "w8a16", "w8a8"])
def test_products_on_a_card_equal_the_dequantized_weight(name: str, tokens: int) -> None:
    weight, x = quantize(torch.randn(128, 256), PRECISIONS[name]), torch.randn(tokens, 256).bfloat16()
    linear = QuantizedLinear(256, 128, False, PRECISIONS[name], torch.bfloat16)
    linear.load_state_dict({key: tensor.cuda() for key, tensor in pack(weight).items()}, assign=True)
    prepare_linears(linear)
    seen = quantize_activation_per_token(x.float()) if name == "w8a8" else x.float()
    wanted = functional.linear(seen, weight.dequantize())
    assert torch.allclose(linear(x.cuda()).float().cpu(), wanted, rtol=2**-6, atol=2**-4 * float(wanted.abs().max()) / 16)


@pytest.mark.gpu
@needs_card
def test_unpacking_stays_on_the_card() -> None:
    codes = codes_of(16, 64)
    assert torch.equal(unpack_codes(pack_codes(codes, 4).cuda(), 4, 64).cpu(), codes)
