"""fp8 weights: rounding, GPTQ, the checkpoint and what other libraries make of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmpq import Batch, compile, load
from llmpq.checkpoint.quantization_config import module_precisions, quantization_config
from llmpq.checkpoint.reference import reference_model
from llmpq.costs.live_bytes import weight_bytes
from llmpq.precision import PRECISIONS
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.gptq import gptq
from llmpq.quantization.hessian import Factor
from llmpq.quantization.original import log_probs_of
from llmpq.quantization.packing import layout, pack, unpack
from llmpq.quantization.quantized_linear import QuantizedLinear
from llmpq.quantization.rounding import quantize, quantize_activation_fp8, round_activation
from tests.loading import load_by_transformers
from tests.values import llama_graph, two_cpus

FP8 = PRECISIONS["fp8"]


def weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_row_is_e4m3_times_its_scale() -> None:
    original = weight(5, 48)
    found = quantize(original, FP8)
    scale = (original.abs().amax(-1, keepdim=True) / 448).to(torch.bfloat16)
    assert found.codes.dtype == torch.float8_e4m3fn and torch.equal(found.scale, scale)
    expected = (original / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale.float()
    assert torch.equal(found.dequantize(), expected)
    normal = original.abs() > 2**-6 * scale.float()
    assert float(((expected - original).abs() / original.abs())[normal].max()) <= 2**-4 + 1e-6
    assert torch.equal(quantize_clipped(original, FP8).dequantize(), expected)


def test_activations_are_rounded_token_by_token_on_the_grid_of_the_precision() -> None:
    x = weight(4, 32) * torch.tensor([[1e-3], [1.0], [50.0], [0.0]])
    seen = quantize_activation_fp8(x)
    assert bool(((seen - x).abs() <= x.abs() * 2**-4 + x.abs().amax(-1, keepdim=True) / 448 * 2**-9).all())
    assert torch.equal(round_activation(x, FP8), seen) and torch.equal(seen[3], torch.zeros(32))
    assert round_activation(x, PRECISIONS["w4a16"]) is x


def test_gptq_finds_fp8_codes_of_less_loss_than_rounding() -> None:
    original, inputs = weight(24, 64), weight(400, 64, 1) @ weight(64, 64, 2)
    factor = Factor.of(inputs.T @ inputs / len(inputs), len(inputs))
    found = gptq(original, FP8, factor)
    losses = [float(factor.loss(original - each.dequantize()).sum()) for each in (found, quantize(original, FP8))]
    assert found.codes.dtype == torch.float8_e4m3fn
    assert losses[0] < 0.8 * losses[1]


def test_a_weight_survives_the_way_to_disk_and_back() -> None:
    found = quantize(weight(6, 40), FP8)
    tensors = pack(found)
    assert {name: (part.dtype, tuple(part.shape)) for name, part in tensors.items()} == layout(FP8, 6, 40, torch.bfloat16)
    assert torch.equal(unpack(tensors, FP8).dequantize(), found.dequantize())
    assert FP8.weight_bytes(6, 40) == sum(part.nbytes for part in tensors.values())


def test_a_linear_multiplies_rounded_inputs_with_dequantized_weights() -> None:
    found = quantize(weight(8, 32), FP8)
    linear = QuantizedLinear(32, 8, False, FP8, torch.bfloat16)
    linear.load_state_dict(pack(found), assign=True)
    linear.prepare()
    assert linear.prepacked_bytes == 0
    x = weight(3, 32, 1).to(torch.bfloat16)
    expected = quantize_activation_fp8(x) @ found.dequantize(torch.bfloat16).T
    assert torch.allclose(linear(x).float(), expected.float(), atol=0.05, rtol=0.02)


def test_plans_count_the_weight_that_is_dequantized() -> None:
    graph, step = llama_graph(), (1, 1, 1)
    kind = graph.kinds[0]
    largest = max(linear.in_features * linear.out_features for linear in kind.linears)
    assert 5 * largest < weight_bytes(graph, kind, step, FP8, in_place=False) < 8 * largest
    assert weight_bytes(graph, kind, step, FP8, in_place=True) > 2 * largest


def test_the_config_names_the_float_format_and_is_read_back() -> None:
    config = quantization_config({"a": (FP8, 64), "b": (PRECISIONS["w8a8"], 64)}, [])
    assert config is not None
    formats = {scheme["targets"][0]: (scheme["format"], scheme["weights"]["type"]) for scheme in config["config_groups"].values()}
    assert formats == {"a": ("float-quantized", "float"), "b": ("int-quantized", "int")}
    assert module_precisions({"quantization_config": config}) == {"a": FP8, "b": PRECISIONS["w8a8"]}


@pytest.fixture(scope="module")
def fp8_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with fp8 in its first layers, in two stages."""
    out = tmp_path_factory.mktemp("fp8") / "out"
    rules = ("count(fp8) >= 6", "first_layer.device != last_layer.device")
    options: dict[str, Any] = {"indicator": "prior", "quantizer": "rtn", "quality_check": False}
    compile("demo", two_cpus(), Batch(4, 48, 24), out=out, precisions=("16", "fp8"), constraints=rules, **options)
    return out


def test_compressed_tensors_decompresses_our_files_to_our_values(fp8_out: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    from llmpq.checkpoint.reader import read_json

    config = read_json(fp8_out / "config.json")["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry("float-quantized")
    tensors: dict[str, Tensor] = {}
    for path in fp8_out.glob("*.safetensors"):
        tensors |= load_file(path)
    for name in scheme.targets:
        parts = {suffix: tensors[f"{name}.{suffix}"] for suffix in ("weight", "weight_scale")}
        theirs = compressor.decompress(dict(parts), scheme)["weight"]
        ours = unpack(parts, FP8).dequantize(theirs.dtype)
        assert torch.equal(theirs, ours), name


def test_our_stages_compute_what_the_reference_computes(fp8_out: Path) -> None:
    model = load(fp8_out)
    ids = model.encode(["import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n"])[0]
    reference = log_probs_of(reference_model(fp8_out))(ids)
    assert torch.allclose(model.reference().log_probs(ids), reference, atol=1e-3)
    assert float((model.log_probs(ids) - reference).abs().mean()) < 0.1
    assert len(model.generate("def f(", 4)) == 1


def test_transformers_loads_the_checkpoint(fp8_out: Path) -> None:
    model, problems = load_by_transformers(fp8_out, torch.float32)
    ids = list(range(20, 60))
    assert problems == []
    ours = log_probs_of(reference_model(fp8_out))(ids)
    assert float((log_probs_of(model)(ids) - ours).abs().mean()) < 0.1
