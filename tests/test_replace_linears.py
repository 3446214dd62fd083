"""replace-linears: stages whose state dict is the shard file, and that compute what the dequantized weights say."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmpq.frontend.build import build_model
from llmpq.fx.annotation import annotation_of
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.precision import PRECISIONS
from llmpq.program import Program
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear
from llmpq.quantization.rounding import quantize, quantize_activation_per_token
from tests.conftest import Golden
from tests.tiny_models import calls, program_of, run, tiny_config, tiny_model

MIXED = (("16", "w4a16"), ("w8a16", "w8a8"))


def lower(program: Program) -> Program:
    return run_passes(program, parse_pipeline(LOWERING))


def shards(program: Program, weights: nn.Module) -> list[dict[str, Tensor]]:
    """What the shard files hold: plain and packed tensors, a tied head only where the embedding is not."""
    plan, graph = program.require("plan"), program.graph
    tensors: dict[str, Tensor] = dict(weights.named_parameters())
    made: list[dict[str, Tensor]] = []
    for index, stage in enumerate(plan.stages):
        ends = [*(graph.first if index == 0 else ()), *(graph.last if index == len(plan.stages) - 1 else ())]
        shard = {parameter.name: tensors[parameter.name] for parameter in ends}
        if graph.tied_head and 0 < index == len(plan.stages) - 1:
            shard[f"{graph.head}.weight"] = tensors[graph.tied_head]
        for layer, option in zip(stage.layers, stage.options):
            shard |= layer_tensors(
                f"{graph.layer_names[layer]}.", tensors, [x.name for x in graph.kind_of(layer).linears], option
            )
        made.append({name: tensor.detach() for name, tensor in shard.items()})
    return made


def layer_tensors(prefix: str, tensors: dict[str, Tensor], linears: Sequence[str], option: str) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for linear in linears if option != "16" else ():
        weight = found.pop(f"{prefix}{linear}.weight").detach()
        found |= {
            f"{prefix}{linear}.{key}": value for key, value in pack(quantize(weight, PRECISIONS[option], torch.float32)).items()
        }
    return found


def dequantized(model: PreTrainedModel, program: Program) -> PreTrainedModel:
    """The same model with weights that went through the quantizer, and 8-bit activations rounded."""
    for layer, option in enumerate(program.require("plan").options):
        for linear in program.graph.kind_of(layer).linears if option != "16" else ():
            module = model.get_submodule(f"{program.graph.layer_names[layer]}.{linear.name}")
            weight = module.get_parameter("weight")
            weight.data = quantize(weight.detach(), PRECISIONS[option], torch.float32).dequantize()
            if PRECISIONS[option].activation_bits < 16:
                module.register_forward_pre_hook(lambda _, args: (quantize_activation_per_token(args[0]),))
    return model


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
@pytest.mark.parametrize("stages", [MIXED, (MIXED[0] + MIXED[1],)], ids=["two stages", "one stage"])
def test_a_model_without_weights_is_lowered_loaded_and_equals_the_dequantized_model(
    family: str, stages: Sequence[Sequence[str]]
) -> None:
    lowered = lower(program_of(build_model(tiny_config(family)), stages))
    for stage, shard in zip(lowered.require("stages"), shards(lowered, tiny_model(family)), strict=True):
        stage.load_state_dict(shard, assign=True, strict=True)
    model = dequantized(tiny_model(family), lowered)
    reference = program_of(model, stages).require("graph_module")
    inputs = calls(padded=True)
    for ours, theirs in zip(
        run(lowered.require("stages"), lowered.graph, inputs), run([reference], lowered.graph, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs[:, -1:], rtol=0, atol=1e-6)  # trim-logits keeps the last position


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gemma3", "mixtral"])
def test_state_dict_names_types_and_shapes_are_those_of_the_shard_files(family: str) -> None:
    options = (("16", "16"), ("16", "16")) if family in ("gpt2", "mixtral") else MIXED
    lowered = lower(program_of(build_model(tiny_config(family)), options))
    for stage, shard in zip(lowered.require("stages"), shards(lowered, tiny_model(family)), strict=True):
        expected = {name: (tensor.dtype, tensor.shape) for name, tensor in shard.items()}
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in stage.state_dict().items()} == expected


def test_linears_of_16_bit_layers_stay_and_the_unsplit_graph_is_untouched() -> None:
    program = program_of(tiny_model("llama"), MIXED)
    lowered = lower(program)
    for stage in lowered.require("stages"):
        for node in stage.graph.nodes:
            found = annotation_of(node)
            if found is not None and found.option is not None:
                kinds = {
                    type(module)
                    for module in stage.get_submodule(node.target).modules()
                    if isinstance(module, nn.Linear | QuantizedLinear)
                }
                assert kinds == {nn.Linear if found.option == "16" else QuantizedLinear}
    assert not any(isinstance(module, QuantizedLinear) for module in lowered.require("graph_module").modules())


def test_loading_a_stage_gives_the_unsplit_graph_no_weights() -> None:
    lowered = lower(program_of(build_model(tiny_config("llama")), MIXED))
    for stage, shard in zip(lowered.require("stages"), shards(lowered, tiny_model("llama")), strict=True):
        stage.load_state_dict(shard, assign=True, strict=True)
    assert all(parameter.is_meta for parameter in lowered.require("graph_module").parameters())


@pytest.mark.parametrize("name", ["w8a8", "w8a16", "w4a16", "w3a16"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_quantized_linear_computes_with_the_dequantized_weight(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    precision, plain = PRECISIONS[name], nn.Linear(96, 40, bias=bias)
    packed = pack(quantize(plain.weight.detach(), precision, torch.float32)) | ({"bias": plain.bias.detach()} if bias else {})
    linear = QuantizedLinear(96, 40, bias, precision, torch.float32)
    assert all(buffer.is_meta for buffer in linear.buffers())
    linear.load_state_dict(packed, assign=True, strict=True)
    x = torch.randn(2, 3, 96)
    rounded = quantize_activation_per_token(x) if precision.activation_bits == 8 else x
    weight = quantize(plain.weight.detach(), precision, torch.float32).dequantize()
    assert torch.equal(linear(x), nn.functional.linear(rounded, weight, plain.bias))


def test_the_modules_of_a_mixed_llama_read_like_this(golden: Golden) -> None:
    stages = lower(program_of(tiny_model("llama"), MIXED)).require("stages")
    leaves = (
        f"stage {index} {path}: {module}"
        for index, stage in enumerate(stages)
        for path, module in stage.named_modules()
        if next(module.children(), None) is None
    )
    golden("replaced_llama.txt", "\n".join(leaves))
