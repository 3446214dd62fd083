"""gptqmodel's Marlin: its layouts against the dequantized weight, which linears it takes, and what happens without it."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from llmpq.errors import LlmpqWarning
from llmpq.precision import PRECISIONS
from llmpq.quantization import cuda_kernels, marlin_kernel
from llmpq.quantization.cuda_kernels import Int4Kernel, card_kernel
from llmpq.quantization.marlin_kernel import MarlinKernel, takes_marlin, turned
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears
from llmpq.quantization.rounding import quantize

HALF, BRAIN = torch.float16, torch.bfloat16
HOPPER, AMPERE, TURING, VOLTA = (9, 0), (8, 0), (7, 5), (7, 0)
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: gptqmodel's kernels cannot run here")
needs_gptqmodel = pytest.mark.skipif(
    find_spec("gptqmodel") is None, reason="gptqmodel is missing; pip install 'llmpq[gptqmodel]'"
)


def weight_of_gptq(words: Tensor, scale: Tensor, bits: int) -> Tensor:
    """GPTQ's definition, value by value: word w of column r holds rows 32 / bits * w and following, the first one lowest."""
    per_word = 32 // bits
    columns, rows = len(words) * per_word, words.shape[1]
    group = columns // len(scale)
    dense = torch.zeros(rows, columns, dtype=torch.float64)
    for column in range(columns):
        fields = (words[column // per_word].to(torch.int64) & 0xFFFFFFFF) >> (bits * (column % per_word)) & (2**bits - 1)
        dense[:, column] = (fields - 2 ** (bits - 1)).double() * scale[column // group].double()
    return dense


class FakeLibrary:
    """Marlin's functions with its shapes and none of its permutations, computed by GPTQ's definition."""

    def marlin_make_workspace_new(self, device: torch.device) -> Tensor:
        return torch.zeros(128, dtype=torch.int32, device=device)

    def gptq_marlin_repack(self, words: Tensor, *, perm: Tensor, size_k: int, size_n: int, num_bits: int, dtype: Any) -> Tensor:
        assert words.is_contiguous() and words.dtype == torch.int32 and perm.numel() == 0
        assert tuple(words.shape) == (size_k * num_bits // 32, size_n)
        return words.reshape(size_k // 16, size_n * num_bits // 2)

    def marlin_permute_scales(self, scale: Tensor, *, size_k: int, size_n: int, group_size: int) -> Tensor:
        assert scale.is_contiguous() and tuple(scale.shape) == (size_k // group_size, size_n)
        return scale

    def apply_gptq_marlin_linear(self, *, input: Tensor, weight: Tensor, weight_scale: Tensor, wtype: str, **rest: Any) -> Tensor:
        assert input.is_contiguous() and rest["use_fp32_reduce"] and rest["is_k_full"]
        assert input.shape[1] == rest["input_size_per_partition"] and weight_scale.dtype == input.dtype
        if isinstance(input, torch._subclasses.FakeTensor):
            return input.new_empty(len(input), rest["output_size_per_partition"])
        words = weight.reshape(-1, rest["output_size_per_partition"])
        dense = weight_of_gptq(words, weight_scale, {"uint4b8": 4, "uint8b128": 8}[wtype])
        return (input.double() @ dense.t()).to(input.dtype)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    types = SimpleNamespace(scalar_types=SimpleNamespace(uint4b8="uint4b8", uint8b128="uint8b128"))
    monkeypatch.setattr(marlin_kernel, "_modules", lambda dtype: (fake, types))
    return fake


@given(name=st.sampled_from(["w4a16", "w8a16"]), rows=st.integers(1, 9), groups=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_words_and_scales_turned_are_the_weight_by_gptqs_definition(name: str, rows: int, groups: int, seed: int) -> None:
    weight = torch.randn(rows, 32 * groups, generator=torch.Generator().manual_seed(seed))
    quantized = quantize(weight, PRECISIONS[name], HALF)
    found = weight_of_gptq(turned(pack(quantized)["weight_packed"]), quantized.scale.t(), PRECISIONS[name].num_bits)
    assert torch.equal(found, quantized.dequantize(torch.float32).double())


@pytest.mark.parametrize(
    ("name", "rows", "columns", "dtype", "capability", "wanted"),
    [
        ("w4a16", 2048, 5632, HALF, TURING, True),
        ("w8a16", 2048, 5632, HALF, TURING, True),
        ("w8a16", 64, 128, BRAIN, AMPERE, True),
        ("w8a16", 128, 64, BRAIN, HOPPER, True),
        ("w8a16", 64, 64, BRAIN, AMPERE, False),
        ("w8a16", 2056, 5632, BRAIN, AMPERE, False),
        ("w8a16", 2048, 96, BRAIN, AMPERE, False),
        ("w4a16", 2048, 5632, HALF, VOLTA, False),
        ("w4a16", 2048, 5632, BRAIN, TURING, False),
        ("w8a16", 2048, 5632, torch.float32, HOPPER, False),
        ("w3a16", 2048, 5632, HALF, HOPPER, False),
        ("w8a8", 2048, 5632, HALF, HOPPER, False),
        ("w8a16", 2048, 5632, HALF, (0, 0), False),
    ],
)
def test_marlin_is_for_4_and_8_bits_from_turing_on_in_whole_tiles(
    name: str, rows: int, columns: int, dtype: torch.dtype, capability: tuple[int, int], wanted: bool
) -> None:
    assert takes_marlin(PRECISIONS[name], rows, columns, dtype, capability) is wanted


@pytest.mark.parametrize(
    ("name", "dtype", "capability", "wanted"),
    [
        ("w4a16", BRAIN, AMPERE, Int4Kernel),
        ("w4a16", HALF, AMPERE, MarlinKernel),
        ("w4a16", HALF, TURING, MarlinKernel),
        ("w8a16", BRAIN, AMPERE, MarlinKernel),
        ("w4a16", HALF, VOLTA, type(None)),
        ("w3a16", HALF, AMPERE, type(None)),
    ],
)
def test_torchs_int4_product_comes_before_marlin(
    name: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    wanted: type,
    library: FakeLibrary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_kernels, "capability_of", lambda device: capability)
    assert type(card_kernel(PRECISIONS[name], 128, 256, dtype, torch.device("cpu"))) is wanted


@pytest.mark.parametrize("name", ["w4a16", "w8a16"])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_dequantized_weight_in_as_many_bytes(name: str, bias: bool, library: FakeLibrary) -> None:
    torch.manual_seed(0)
    weight, x = quantize(torch.randn(64, 256), PRECISIONS[name], HALF), torch.randn(5, 256).half()
    added = torch.randn(64).half() if bias else None
    kernel = marlin_kernel.marlin_kernel(PRECISIONS[name], HALF, torch.device("cpu"))
    assert kernel is not None
    packed = pack(weight)["weight_packed"]
    tiles, scale = kernel.prepack(packed, weight.scale)
    assert (tiles.nbytes, scale.nbytes) == (packed.nbytes, weight.scale.nbytes)
    wanted = functional.linear(x.double(), weight.dequantize().double(), None if added is None else added.double())
    assert torch.allclose(kernel.product(x, tiles, scale, added).double(), wanted, rtol=2**-9, atol=2**-6)


@pytest.mark.parametrize("tokens", [0, 1, 400])
def test_a_linear_on_a_turing_card_keeps_marlins_weight_alone(
    tokens: int, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without values on a card that is not there; copying one asks for CUDA itself."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: TURING)
    monkeypatch.setattr(marlin_kernel, "turned", lambda matrix: matrix.new_empty(matrix.shape[::-1]))
    with FakeTensorMode():
        linear = QuantizedLinear(256, 64, True, PRECISIONS["w4a16"], HALF, "cuda")
        before = linear.weight_packed.nbytes
        prepare_linears(linear)
        y = linear(torch.empty(1, tokens, 256, dtype=HALF, device="cuda"))
    assert (tuple(y.shape), y.dtype, y.device.type) == ((1, tokens, 64), HALF, "cuda")
    assert (linear.prepacked_bytes, linear.weight_packed.numel(), tuple(linear.weight_scale.shape)) == (before, 0, (2, 64))


def no_package(name: str) -> str:
    raise PackageNotFoundError(name)


def test_without_gptqmodel_there_is_no_kernel_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    marlin_kernel._modules.cache_clear()
    monkeypatch.setattr(marlin_kernel, "version", no_package)
    assert marlin_kernel.marlin_kernel(PRECISIONS["w4a16"], HALF, torch.device("cpu")) is None
    assert not recwarn.list


@pytest.mark.parametrize(
    ("release", "reason", "told"),
    [
        ("7.5.0", "", "found release 7.5.0, expected 7.6.x; pip install 'llmpq"),
        ("7.6.0", "CUDA_HOME is not set\nand more", "weights are dequantized: CUDA_HOME is not set$"),
    ],
)
def test_a_kernel_that_is_not_there_is_told_once_and_the_weights_are_dequantized(
    release: str, reason: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imported(name: str) -> Any:
        print("a banner")
        os.environ["LEFT_BY_GPTQMODEL"] = "1"
        return SimpleNamespace(marlin_runtime_available=lambda dtype: False, marlin_runtime_error=lambda dtype: reason)

    marlin_kernel._modules.cache_clear()
    monkeypatch.setattr(marlin_kernel, "version", lambda name: release)
    monkeypatch.setattr(marlin_kernel, "import_module", imported)
    with pytest.warns(LlmpqWarning, match=told) as heard:
        for _ in range(2):
            assert marlin_kernel.marlin_kernel(PRECISIONS["w4a16"], HALF, torch.device("cpu")) is None
    marlin_kernel._modules.cache_clear()
    assert (len(heard), capsys.readouterr().out, os.environ.get("LEFT_BY_GPTQMODEL")) == (1, "", None)


AGAINST_GPTQMODEL = """
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from llmpq.precision import PRECISIONS
from llmpq.quantization.marlin_kernel import MODULES, turned
from llmpq.quantization.packing import pack
from llmpq.quantization.rounding import quantize

for name in ("w4a16", "w8a16"):
    precision, rows, columns = PRECISIONS[name], 64, 256
    weight = quantize(torch.randn(rows, columns), precision, torch.float16)
    linear = TorchLinear(precision.num_bits, 128, True, False, columns, rows, dtype=torch.float16)
    words = turned(pack(weight)["weight_packed"])
    assert (linear.qweight.shape, linear.scales.shape) == (words.shape, weight.scale.t().shape)
    linear.qweight, linear.scales = words, turned(weight.scale)
    zeros = sum(2 ** (precision.num_bits - 1) << shift for shift in range(0, 32, precision.num_bits))
    linear.qzeros.fill_(zeros - 2**32)
    linear.eval()
    assert torch.equal(linear.dequantize_weight().t(), weight.dequantize(torch.float16)), name
library, types = (__import__(module, fromlist=["x"]) for module in MODULES)
assert [t.size_bits for t in (types.scalar_types.uint4b8, types.scalar_types.uint8b128)] == [4, 8]
scale = torch.rand(2, 64)
assert library.marlin_permute_scales(scale, size_k=256, size_n=64, group_size=128).sort().values.equal(scale.sort().values)
for name in ("gptq_marlin_repack", "apply_gptq_marlin_linear", "marlin_make_workspace_new", "marlin_runtime_error"):
    assert callable(getattr(library, name)), name
"""


@needs_gptqmodel
def test_gptqmodels_own_dequantizer_reads_the_words_as_they_are_written_here() -> None:
    """In a process of its own, because the import of gptqmodel patches other libraries."""
    done = subprocess.run([sys.executable, "-c", AGAINST_GPTQMODEL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@needs_card
@needs_gptqmodel
@pytest.mark.parametrize("tokens", [1, 17, 200])
@pytest.mark.parametrize("name", ["w4a16", "w8a16"])
def test_marlin_on_a_card_equals_the_dequantized_weight(name: str, tokens: int) -> None:
    weight, x = quantize(torch.randn(128, 256), PRECISIONS[name], HALF), torch.randn(tokens, 256).half()
    linear = QuantizedLinear(256, 128, False, PRECISIONS[name], HALF)
    linear.load_state_dict({key: tensor.cuda() for key, tensor in pack(weight).items()}, assign=True)
    prepare_linears(linear)
    assert isinstance(linear._card, MarlinKernel)
    wanted = functional.linear(x.float(), weight.dequantize())
    assert torch.allclose(linear(x.cuda()).float().cpu(), wanted, rtol=2**-8, atol=2**-8 * float(wanted.abs().max()))
