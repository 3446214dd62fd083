"""vLLM loads what llmpq compiles and computes the same, in one process and as the plan's pipeline."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import llmpq
from llmpq.backends.vllm_check import NOISES
from llmpq.checkpoint.manifest import Manifest
from llmpq.checkpoint.reference import reference_model
from llmpq.frontend.models import data_path, load_tokenizer, read_text, token_ids
from llmpq.quantization.original import load_original, log_probs_of
from tests.engines.vllm_run import PYTHON, ROOT, VllmRun, execute, run_vllm

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not PYTHON.is_file(), reason="there is no environment .engines; `make engines` makes it"),
]

DEMO = data_path("models", "demo")
MIXTURE = ("count(w8a8) >= 3", "count(w4a16) >= 3", "count(16) >= 2")
SCHEMES = {
    "16": "UnquantizedLinearMethod",
    "w8a8": "CompressedTensorsW8A8Int8",
    "w4a16": "CompressedTensorsWNA16",
    "w8a16": "CompressedTensorsWNA16",
}
PRECISIONS = tuple(SCHEMES)
BATCH = llmpq.Batch(2, 16, 8)
PLUGIN_KERNEL = "Int8WeightOnlyKernel"
FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
WINDOWS, WINDOW = 4, 256  # stretches of the report text, tokens of each
ABOUT_WEIGHTS = re.compile(r"lm_head|embed|\btied?\b|weight|checkpoint|param|quantiz|safetensors", re.IGNORECASE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> llmpq.CompiledModel:
    return llmpq.compile(
        "demo",
        ROOT / "examples" / "clusters" / "two-unlike-cpus.yaml",
        llmpq.Batch(8, 64, 32),
        out=tmp_path_factory.mktemp("compiled") / "out",
        precisions="16,w8a8,w4a16",
        constraints=MIXTURE,
    )


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    """Stretches of the report text, evenly spread."""
    ids = token_ids(load_tokenizer(DEMO), read_text("report")[0])
    starts = [index * (len(ids) - WINDOW) // (WINDOWS - 1) for index in range(WINDOWS)]
    return [ids[start : start + WINDOW] for start in starts]


@pytest.fixture(scope="module")
def windows_file(windows: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "windows.json"
    path.write_text(json.dumps(windows))
    return path


@pytest.fixture(scope="module")
def original_by_vllm(windows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> VllmRun:
    (run,) = run_vllm([DEMO], windows_file, tmp_path_factory.mktemp("original") / "result.json")
    return run


@pytest.fixture(scope="module")
def compiled_by_vllm(compiled: llmpq.CompiledModel, windows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> VllmRun:
    (run,) = run_vllm([compiled.directory], windows_file, tmp_path_factory.mktemp("compiled-by-vllm") / "result.json")
    return run


@pytest.fixture(scope="module")
def pipeline_by_vllm(compiled: llmpq.CompiledModel, windows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> VllmRun:
    partition = ",".join(str(len(stage.layers)) for stage in compiled.plan.stages)
    (run,) = run_vllm([compiled.directory], windows_file, tmp_path_factory.mktemp("pipeline") / "result.json", partition)
    return run


@pytest.fixture(scope="module")
def by_precisions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, llmpq.CompiledModel]:
    """The demo model at each precision alone, and at all of them mixed."""
    out = tmp_path_factory.mktemp("precisions")
    rules = {"mixed": tuple(f"count({name}) >= 2" for name in PRECISIONS)}
    return {
        name: llmpq.compile(
            "demo",
            "1xCPU",
            BATCH,
            out=out / name,
            precisions=PRECISIONS if name == "mixed" else name,
            constraints=rules.get(name, ()),
            indicator="prior",
            quantizer="rtn",
            quality_check=False,
            engine="vllm",
        )
        for name in (*PRECISIONS, "mixed")
    }


@pytest.fixture(scope="module")
def precisions_by_vllm(
    by_precisions: dict[str, llmpq.CompiledModel], windows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, VllmRun]:
    """One process loads them one after the other."""
    models = [compiled.directory for compiled in by_precisions.values()]
    runs = run_vllm(models, windows_file, tmp_path_factory.mktemp("precisions-by-vllm") / "result.json")
    return dict(zip(by_precisions, runs, strict=True))


def of_actual_tokens(model: nn.Module, windows: list[list[int]]) -> Tensor:
    """[tokens] fp32 log-probability of every token but the first of each window."""
    log_probs = log_probs_of(model)
    return torch.cat([log_probs(window)[:-1].gather(1, torch.tensor(window[1:])[:, None])[:, 0] for window in windows])


def limit(in_bf16: nn.Module, windows: list[list[int]], in_fp32: Tensor) -> float:
    """For the mean difference of vLLM: so many times what bf16 costs torch."""
    return NOISES * difference(of_actual_tokens(in_bf16, windows), in_fp32, "torch in bf16 - in fp32")


@pytest.fixture(scope="module")
def original_in_fp32(windows: list[list[int]]) -> Tensor:
    return of_actual_tokens(load_original(DEMO), windows)


@pytest.fixture(scope="module")
def reference(compiled: llmpq.CompiledModel, windows: list[list[int]]) -> Tensor:
    """Of the compiled model with dequantized weights, in fp32."""
    return of_actual_tokens(reference_model(compiled.directory), windows)


@pytest.fixture(scope="module")
def reference_limit(compiled: llmpq.CompiledModel, windows: list[list[int]], reference: Tensor) -> float:
    return limit(reference_model(compiled.directory, torch.bfloat16), windows, reference)


def difference(found: Tensor, expected: Tensor, what: str) -> float:
    """Mean |difference of log-probabilities|, printed with the largest."""
    gaps = (found - expected).abs()
    print(f"{what}: mean |difference| {float(gaps.mean()):.4f}, max {float(gaps.max()):.4f} nats over {len(gaps)} tokens")
    return float(gaps.mean())


def layer_of(linear: str) -> int:
    return int(linear.split(".")[2])


def assert_runs_the_plan(run: VllmRun, options: tuple[str, ...], stages: tuple[range, ...]) -> None:
    """Every linear of every layer is there once, on its stage, under the scheme of its option."""
    expected = [
        {f"model.layers.{layer}.{linear}": SCHEMES[options[layer]] for layer in layers for linear in FUSED} for layers in stages
    ]
    assert [{name: scheme for name, (scheme, _) in stage.items()} for stage in run.linears] == expected


def test_the_plan_mixes_three_precisions_over_two_stages(compiled: llmpq.CompiledModel) -> None:
    counts = {option: compiled.plan.options.count(option) for option in SCHEMES}
    assert counts["w8a8"] >= 3 and counts["w4a16"] >= 3 and counts["16"] >= 2 and len(compiled.plan.stages) == 2
    assert Manifest.read(compiled.directory).engines["vllm-cpu"] is True


def test_vllm_computes_the_original_within_the_noise_of_bf16(
    original_by_vllm: VllmRun, original_in_fp32: Tensor, windows: list[list[int]]
) -> None:
    print(original_by_vllm.description)
    allowed = limit(load_original(DEMO).to(torch.bfloat16), windows, original_in_fp32)
    assert difference(original_by_vllm.log_probs, original_in_fp32, "vLLM in bf16 - original in fp32") <= allowed


def test_vllm_computes_the_dequantized_reference_of_a_mixture(
    compiled: llmpq.CompiledModel, compiled_by_vllm: VllmRun, reference: Tensor, reference_limit: float, original_in_fp32: Tensor
) -> None:
    print(compiled_by_vllm.description)
    assert_runs_the_plan(compiled_by_vllm, compiled.plan.options, (range(12),))
    from_reference = difference(compiled_by_vllm.log_probs, reference, "vLLM - dequantized reference in fp32")
    assert from_reference <= reference_limit
    assert from_reference < difference(compiled_by_vllm.log_probs, original_in_fp32, "vLLM - original in fp32") / 2


@pytest.mark.parametrize("name", [*PRECISIONS, "mixed"])
def test_vllm_computes_the_dequantized_reference_at_every_precision(
    name: str, by_precisions: dict[str, llmpq.CompiledModel], precisions_by_vllm: dict[str, VllmRun], windows: list[list[int]]
) -> None:
    compiled, run = by_precisions[name], precisions_by_vllm[name]
    print(run.description)
    assert_runs_the_plan(run, compiled.plan.options, (range(12),))
    by_plugin = {layer_of(linear) for linear, (_, kernel) in run.linears[0].items() if kernel == PLUGIN_KERNEL}
    assert by_plugin == {layer for layer, option in enumerate(compiled.plan.options) if option == "w8a16"}
    expected = of_actual_tokens(reference_model(compiled.directory), windows)
    allowed = limit(reference_model(compiled.directory, torch.bfloat16), windows, expected)
    assert difference(run.log_probs, expected, f"{name}: vLLM - dequantized reference in fp32") <= allowed


def test_vllm_runs_the_stages_of_the_plan_as_its_pipeline(
    compiled: llmpq.CompiledModel, pipeline_by_vllm: VllmRun, compiled_by_vllm: VllmRun, reference: Tensor, reference_limit: float
) -> None:
    print(pipeline_by_vllm.description)
    assert_runs_the_plan(pipeline_by_vllm, compiled.plan.options, tuple(stage.layers for stage in compiled.plan.stages))
    assert difference(pipeline_by_vllm.log_probs, reference, "vLLM's pipeline - dequantized reference in fp32") <= reference_limit
    difference(pipeline_by_vllm.log_probs, compiled_by_vllm.log_probs, "vLLM's pipeline - vLLM in one process")


def test_vllm_warns_of_nothing_in_a_tied_two_stage_checkpoint_that_it_accepts_in_the_original(
    compiled_by_vllm: VllmRun, original_by_vllm: VllmRun, pipeline_by_vllm: VllmRun
) -> None:
    assert original_by_vllm.warnings and pipeline_by_vllm.warnings, "vLLM on CPU always warns; is its log read?"
    assert compiled_by_vllm.warnings <= original_by_vllm.warnings
    assert [warning for warning in pipeline_by_vllm.warnings if ABOUT_WEIGHTS.search(warning)] == []


def test_stock_vllm_refuses_what_the_manifest_says_it_refuses(
    by_precisions: dict[str, llmpq.CompiledModel], windows_file: Path, tmp_path: Path
) -> None:
    compiled = by_precisions["w8a16"]
    reason = Manifest.read(compiled.directory).engines["vllm-cpu"]
    assert isinstance(reason, str) and "w8a16, for which vLLM on CPU has no kernel" in reason
    code, printed = execute([compiled.directory], windows_file, tmp_path / "result.json", stock=True)
    assert code != 0 and "Failed to find a kernel" in printed
