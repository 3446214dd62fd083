"""Experts in one parameter, and Conv1D, quantized: written, verified, loaded, and compared with the dequantized reference."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmpq.api import evaluate
from llmpq.checkpoint.manifest import Manifest, verify
from llmpq.checkpoint.output_checks import structural_problems
from llmpq.checkpoint.reader import Checkpoint, read_json
from llmpq.checkpoint.reference import dequantized_state, reference_model
from llmpq.checkpoint.shards import write_shards
from llmpq.checkpoint.stage_layout import place_tensors
from llmpq.checkpoint.tensor_file import TensorFile
from llmpq.compiled import load
from llmpq.compiler import compile
from llmpq.errors import CheckpointError
from llmpq.frontend.build import build_model, trace_model
from llmpq.frontend.models import data_path
from llmpq.graph import LayerGraph
from llmpq.plan import DeviceMemory, Optimality, Plan, Prediction
from llmpq.precision import PRECISIONS
from llmpq.program import Calibration
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.indicators import INDICATORS, parts_of, raw_shares
from llmpq.quantization.output_noise import output_noise
from llmpq.quantization.quantized_linear import QuantizedLinear
from llmpq.quantization.quantizers import Gptq, Quantizer, Rounding
from llmpq.quantization.scoring import Measurements
from llmpq.store import Store
from llmpq.workload import Batch
from tests.loading import load_by_transformers
from tests.tiny_checkpoint import plan
from tests.tiny_models import COMMON, GQA, VOCABULARY
from tests.values import two_cpus

MOE = GQA | {"head_dim": 8, "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": MOE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": MOE | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_oss": MOE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "llama4_text": MOE | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 96},
    "gpt2": COMMON | {"num_hidden_layers": 2, "hidden_size": 64, "n_positions": 64},
}
IDS = torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(5))
TOKENS = tuple(torch.randint(3, VOCABULARY, (512,), generator=torch.Generator().manual_seed(3)).tolist())


def config_of(family: str) -> Any:
    return AutoConfig.for_model(family, **CONFIGS[family])


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32)  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    built: PreTrainedModel = model.eval()
    return built


@cache
def traced(family: str) -> tuple[Any, LayerGraph]:
    return trace_model(build_model(config_of(family)), "tiny")


@cache
def source_of(family: str, folder: Path) -> Path:
    """As transformers saves it: Mixtral's and Qwen's experts in tensors of their own, others in one."""
    model_of(family).save_pretrained(folder / family)
    return folder / family


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


def compiled(family: str, options: tuple[str, str], folder: Path, quantizer: Quantizer | None = None) -> Path:
    """Two layers, each in a file of its own, in fp32."""
    name = f"{family}-{'-'.join(options)}-{quantizer.name if quantizer else 'rtn'}"
    graph, source = traced(family)[1], source_of(family, folder)
    if not (folder / name).exists():
        write_shards(
            folder / name,
            Checkpoint.open(source),
            graph,
            consistent(plan(options, (1,), "float32")),
            assets=source,
            build={},
            quantizer=quantizer or Rounding(),
        )
    return folder / name


def consistent(made: Plan) -> Plan:
    """With memory for its devices, as the verifier wants it."""
    memory = tuple(DeviceMemory(device.name, 0, 0, 0, 0, 0, device.capacity_bytes) for device in made.cluster.devices)
    optimality = Optimality(2.0, None, False, "by hand")
    return replace(made, prediction=Prediction(1.0, 1.0, memory, "assumed"), optimality=optimality)


def log_probs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS[None], use_cache=False).logits[0].float().log_softmax(-1)
    return found


@pytest.mark.parametrize(
    ("family", "options"),
    [*((family, ("w4a16", "w8a8")) for family in CONFIGS), ("mixtral", ("w8a16", "16")), ("gpt_oss", ("fp8", "w3a16"))],
)
def test_the_runtime_computes_what_the_dequantized_model_does(family: str, options: tuple[str, str], folder: Path) -> None:
    out = compiled(family, options, folder)
    verify(out)
    assert list(structural_problems(out)) == []
    torch.testing.assert_close(load(out).log_probs(IDS.tolist()), log_probs(reference_model(out)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_expert_is_stored_as_a_linear_of_its_own_and_rounded_as_one(family: str, folder: Path) -> None:
    out, original = compiled(family, ("w4a16", "w8a8"), folder), model_of(family).state_dict()
    graph, state = traced(family)[1], dict(dequantized_state(out))
    for layer, (name, option) in enumerate(zip(graph.layer_names, ("w4a16", "w8a8"))):
        for linear in graph.kind_of(layer).linears:
            whole = original[f"{name}.{linear.name}" if linear.experts > 1 else f"{name}.{linear.name}.weight"]
            upright = whole.transpose(-1, -2) if linear.transposed else whole
            for number, stored in enumerate(linear.stored):
                expert, piece = divmod(number, max(1, len(linear.pieces)))
                matrix = upright[expert] if linear.experts > 1 else upright
                rows = stored.out_features
                wanted = matrix[piece :: len(linear.pieces)] if linear.interleaved else matrix[piece * rows : (piece + 1) * rows]
                expected = quantize_clipped(wanted, PRECISIONS[option], torch.float32).dequantize()
                assert torch.equal(state[f"{name}.{stored.name}.weight"], expected), stored.name


@pytest.mark.parametrize("family", CONFIGS)
def test_predicted_bytes_are_those_of_the_tensors_on_disk(family: str, folder: Path) -> None:
    out, graph = compiled(family, ("w4a16", "w8a8"), folder), traced(family)[1]
    for index, option in enumerate(("w4a16", "w8a8")):
        infos = TensorFile.open(out / f"model-stage-0000{index}-of-00002.safetensors").infos
        held = sum(
            info.nbytes // (2 if info.dtype == torch.float32 else 1)  # planned with 16 bits
            for name, info in infos.items()
            if name.startswith(f"{graph.layer_names[index]}.") and not name.endswith("weight_shape")
        )
        assert held == graph.kind_of(index).weight_bytes(PRECISIONS[option])


def test_experts_of_a_quantized_layer_are_modules_of_the_runtime_and_those_of_others_are_not(folder: Path) -> None:
    stages = load(compiled("mixtral", ("w8a16", "16"), folder)).stages
    names = [name for name, module in stages[0].named_modules() if isinstance(module, QuantizedLinear)]
    assert len([name for name in names if re.search(r"mlp\.experts\.\d\.(gate|up|down)_proj$", name)]) == 4 * 3
    assert not [module for module in stages[1].modules() if isinstance(module, QuantizedLinear)]
    assert any(name.endswith("mlp.experts.gate_up_proj") for name, _ in stages[1].named_parameters())


def test_tokens_take_the_same_experts_as_in_the_dequantized_model(folder: Path) -> None:
    out = compiled("qwen3_moe", ("w4a16", "w4a16"), folder)
    seen: dict[tuple[str, str], Tensor] = {}
    model, reference = load(out).reference(), reference_model(out)
    for side, modules in (("ours", model.stages), ("theirs", (reference,))):
        for stage in modules:
            for name, module in stage.named_modules():
                if name.endswith("mlp.gate"):
                    module.register_forward_hook(
                        lambda _, given, found, key=(side, name): seen.__setitem__(key, found[-1].sort(-1).values)
                    )
    model.log_probs(IDS.tolist())
    log_probs(reference)
    gates = [name for side, name in seen if side == "theirs"]
    assert len(gates) == 2 and all(torch.equal(seen["ours", name], seen["theirs", name]) for name in gates)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "gpt2"])
def test_gptq_of_every_expert_is_no_worse_than_rounding_and_better_in_all(family: str, folder: Path) -> None:
    """By the loss on the calibration text itself, of what the layer computes."""
    quantizer = Gptq(traced(family)[0], TOKENS, "random", window=32, count=16, device=torch.device("cpu"))
    rounded = compiled(family, ("w3a16", "w3a16"), folder)
    tuned = compiled(family, ("w3a16", "w3a16"), folder, quantizer)
    text = torch.tensor(TOKENS).view(16, 32)
    with torch.no_grad():
        original, other, better = (
            model(input_ids=text, use_cache=False).logits.log_softmax(-1)
            for model in (model_of(family), reference_model(rounded), reference_model(tuned))
        )
    divergences = [float((original.exp() * (original - found)).sum(-1).mean()) for found in (other, better)]
    assert divergences[1] < divergences[0]
    report = read_json(tuned / "build.json")["quantization"]["layers"]
    assert [layer["layer"] for layer in report] == [0, 1] and all(0 < layer["error"] < 1 for layer in report)
    torch.testing.assert_close(load(tuned).log_probs(IDS.tolist()), log_probs(reference_model(tuned)), rtol=0, atol=2e-4)


def test_experts_that_few_tokens_reach_are_rounded_and_named(folder: Path) -> None:
    few = Gptq(traced("qwen3_moe")[0], TOKENS[:64], "random", window=32, device=torch.device("cpu"))
    out = compiled("qwen3_moe", ("w4a16", "16"), folder, few)
    (report,) = read_json(out / "build.json")["quantization"]["layers"]
    named = [name for name in report["rounded"] if re.search(r"mlp\.experts\.\d\.(gate|up|down)_proj$", name)]
    assert named == report["rounded"] and 0 < len(named) <= 24


@pytest.mark.parametrize(("family", "modules"), [("gpt2", 4), ("qwen3_moe", 24)])
def test_an_output_of_a_release_that_left_them_at_16_bits_is_to_be_compiled_again(
    family: str, modules: int, folder: Path, tmp_path: Path
) -> None:
    """config.json as such a release wrote it: the plan says w8a16, but the modules of that layer are in no group."""
    out = tmp_path / "out"
    shutil.copytree(compiled(family, ("16", "w8a16"), folder), out)
    config = read_json(out / "config.json")
    for scheme in config["quantization_config"]["config_groups"].values():
        scheme["targets"] = [name for name in scheme["targets"] if family == "qwen3_moe" and ".experts." not in name]
    (out / "config.json").write_text(json.dumps(config))
    first = {"gpt2": "attn.c_attn", "qwen3_moe": "mlp.experts.0.gate_proj"}[family]
    told = f"out: .*1.{first} is stored at 16, expected w8a16 by its plan [(]{modules} such modules[)]: another release"
    with pytest.raises(CheckpointError, match=told):
        load(out)


def test_other_quantized_experts_and_conv1d_are_loaded_by_llmpq_alone(folder: Path) -> None:
    for family in ("mixtral", "gpt2"):
        engines = Manifest.read(compiled(family, ("w4a16", "w8a8"), folder)).engines
        assert engines["llmpq"] is True and all(engines[name] is not True for name in ("transformers", "vllm", "vllm-cpu"))


def test_transformers_loads_experts_that_its_mapping_merges_at_one_precision(folder: Path) -> None:
    out = compiled("qwen3_moe", ("w4a16", "16"), folder)
    assert Manifest.read(out).engines["transformers"] is True
    model, said = load_by_transformers(out, torch.float32)
    assert said == []
    torch.testing.assert_close(log_probs(model), log_probs(reference_model(out)), rtol=0, atol=1e-5)
    for family, options in (("qwen3_moe", ("w4a16", "w8a16")), ("qwen3_moe", ("w8a8", "16")), ("mixtral", ("w4a16", "16"))):
        assert "holds experts" in str(Manifest.read(compiled(family, options, folder)).engines["transformers"])


def test_a_checkpoint_of_other_sizes_is_refused_with_the_name_of_the_expert(folder: Path) -> None:
    graph, source = traced("gpt_oss")[1], source_of("gpt_oss", folder)
    wide = tuple(
        replace(linear, in_features=2 * linear.in_features) if linear.experts > 1 else linear for linear in graph.kinds[0].linears
    )
    other = replace(graph, kinds=tuple(replace(kind, linears=wide) for kind in graph.kinds))
    sizes = r"mlp.experts.gate_up_proj of .*experts.0.gate_proj is \[96, 64\], expected \[96, 128\]"
    with pytest.raises(CheckpointError, match=sizes):
        write_shards(folder / "no", Checkpoint.open(source), other, plan(("w4a16", "16"), (1,)), assets=source, build={})


def test_a_missing_expert_is_named(folder: Path) -> None:
    graph, names = traced("mixtral")[1], Checkpoint.open(source_of("mixtral", folder)).names
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.0\.mlp\.experts"):
        place_tensors([name for name in names if ".w2." not in name], graph, plan(("w4a16", "16"), (1,)))


@pytest.fixture(scope="module", params=["mixtral", "llama4_text", "gpt2"])
def measured(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurements]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMPQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Measurements.of(traced(request.param)[1], Calibration(source_of(request.param, folder), TOKENS, "random"))


def test_every_indicator_sees_experts_and_conv1d(measured: Measurements) -> None:
    precisions = [PRECISIONS["w8a16"], PRECISIONS["w4a16"]]
    shares = {name: raw_shares(name, measured, precisions, units=parts_of(measured.graph)) for name in INDICATORS}
    for name in ("fisher", "variance", "hessian", "measured"):
        for coarse, fine in zip(shares[name]["w4a16"], shares[name]["w8a16"]):
            assert coarse > fine and (fine > 0 or name == "measured")  # at eight bits the measured one may be lost in rounding
    ratios = [found / truth for found, truth in zip(shares["fisher"]["w4a16"], shares["measured"]["w4a16"])]
    assert min(ratios) > 0.4 and max(ratios) < 2.5


def test_noise_of_experts_is_summed_over_the_tokens_that_each_of_them_sees(folder: Path, tmp_path: Path) -> None:
    graph, source = traced("mixtral")[1], source_of("mixtral", folder)
    only_down = replace(graph.kinds[0], linears=tuple(x for x in graph.kinds[0].linears if x.name.endswith("down_proj")))
    calibration = Calibration(source, TOKENS[:64], "random")
    measured = Measurements(replace(graph, kinds=(only_down,)), calibration, Store(tmp_path))
    model, noise, signal = measured.model, [], []

    def add(module: Any, given: tuple[Tensor, ...]) -> None:
        rounding = module.weight - quantize_clipped(module.weight, PRECISIONS["w4a16"]).dequantize()
        noise.append(float((given[0] @ rounding.T).square().sum()))
        signal.append(float((given[0] @ module.weight.T).square().sum()))

    handles = [
        model.get_submodule(f"model.layers.0.mlp.experts.{expert}.down_proj").register_forward_pre_hook(add)
        for expert in range(4)
    ]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([TOKENS[:64]]), use_cache=False, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    written = float((states[1] - states[0]).square().sum() / states[1].square().sum())
    found = output_noise(measured, "hessian", [PRECISIONS["w4a16"]])["w4a16"]
    assert len(noise) == 4 and found.attention == (0.0, 0.0)
    assert found.mlp[0] == pytest.approx(written * sum(noise) / sum(signal), rel=1e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt2"])
def test_a_model_is_compiled_loaded_and_evaluated_with_every_default(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned with a sensitivity by gradients, calibrated, written, scored beside the original, generating."""
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path / "cache"))
    demo, values = data_path("models", "demo"), {"vocab_size": 2048, "max_position_embeddings": 128, "n_positions": 128}
    config = AutoConfig.for_model(family, **CONFIGS[family] | values)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")  # type: ignore[no-untyped-call]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("def double(number: int) -> int:\n    return 2 * number\n" * 40)
    model = compile(
        tmp_path / "model",
        two_cpus(),
        Batch(1, 16, 8),
        out=tmp_path / "out",
        precisions=("16", "w4a16"),
        constraints=["count(w4a16) >= 2"],
        max_ppl_increase=1.0,
        calibration=str(text),
        quality_check=False,
    )
    assert model.plan.options == ("w4a16", "w4a16")
    report = evaluate(tmp_path / "out", str(text), against=tmp_path / "model", max_tokens=128)
    assert report.kl is not None and 0 < report.kl < 0.1
    assert len(model.generate("def f(", 4)) == 1
