"""The compiler: outputs that nobody named, models without weights or tokenizer, and what it returns."""

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmpq import Batch, compile, load
from llmpq.checkpoint.manifest import verify
from llmpq.compiler import plan
from llmpq.errors import CheckpointError, InputError, QuantizationError
from llmpq.options import PlanningOptions
from llmpq.program import Program
from tests.command_line import ROOT
from tests.values import two_cpus

DEMO = ROOT / "llmpq" / "data" / "models" / "demo"
BATCH = Batch(2, 16, 8)


def test_an_output_that_nobody_named_lives_as_long_as_the_result() -> None:
    compiled = compile("demo", two_cpus(), BATCH, indicator="prior", quality_check=False)
    directory = compiled.directory
    assert verify(directory) and compiled.generate("def main(", max_new_tokens=3)
    reference = compiled.reference()
    del compiled
    gc.collect()
    assert reference.generate("def main(", max_new_tokens=3)
    del reference
    gc.collect()
    assert not directory.exists() and not directory.parent.exists()


def test_an_output_that_was_named_is_what_load_gives_back(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    told: dict[str, Any] = {"progress": lambda *step: seen.append(step)}
    compiled = compile("demo", two_cpus(), BATCH, out=tmp_path / "a" / "out", indicator="prior", quality_check=False, **told)
    assert compiled.directory == tmp_path / "a" / "out"
    assert load(compiled.directory).plan == compiled.plan
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen) and seen[-1][1] == seen[-1][2]


def test_a_compile_that_fails_half_way_leaves_no_directory(tmp_path: Path) -> None:
    model = Path(shutil.copytree(DEMO, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.11.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(QuantizationError, match=r"layers\.11\.mlp\.down_proj\.weight: .*1 values"):
        compile(model, two_cpus(), BATCH, out=tmp_path / "out", indicator="prior", quality_check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "options", [{"constraints": ["layers[99].bits >= 8"]}, {"constraints": ["count(w9) >= 1"]}, {"assign": "assign-none"}]
)
def test_what_the_options_name_is_checked_before_any_pass_runs(options: PlanningOptions) -> None:
    seen: list[object] = []
    with pytest.raises(InputError, match="is unknown"):
        plan("demo", two_cpus(), BATCH, observe=lambda done, program: seen.append(done), **options)
    assert seen == []


def test_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    for options in (("16",), ("w4a16",)):
        compiled = compile(
            "demo", two_cpus(), BATCH, out=tmp_path / "out", precisions=options, theta=0.0, indicator="prior", quality_check=False
        )
        assert set(load(tmp_path / "out").plan.options) == set(compiled.plan.options) == set(options)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_with_its_configuration_alone_is_planned_by_the_prior(tmp_path: Path) -> None:
    shutil.copyfile(DEMO / "config.json", tmp_path / "config.json")
    made = plan(tmp_path, two_cpus(), BATCH)
    assert made.plan is not None and "prior" in made.plan.quality.provenance
    with pytest.raises(InputError, match="indicator 'variance' needs the model's weights"):
        plan(tmp_path, two_cpus(), BATCH, indicator="variance")
    with pytest.raises(CheckpointError, match=r"no weights; expected model.safetensors"):
        compile(tmp_path, two_cpus(), BATCH)


def test_weights_without_a_tokenizer_are_compiled_by_the_prior_and_refused_by_the_indicator(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model, ignore=shutil.ignore_patterns("tokenizer*", "texts"))
    assert compile(model, two_cpus(), BATCH, out=tmp_path / "out", indicator="prior", quality_check=False).plan.stages
    with pytest.raises(CheckpointError, match=r"no tokenizer that transformers reads .*; copy tokenizer.json beside the weights"):
        plan(model, two_cpus(), BATCH, indicator="variance")


def test_a_module_is_planned_and_another_object_is_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=128, intermediate_size=256, vocab_size=128, num_hidden_layers=3, num_attention_heads=2)
    model: nn.Module = LlamaForCausalLM(config)
    model.eval()
    made = plan(model, two_cpus(), BATCH).plan
    assert made is not None and made.model == "LlamaForCausalLM" and len(made.options) == 3
    compiled = compile(model, two_cpus(), BATCH)
    assert compiled.plan.model == "LlamaForCausalLM" and "prior" in compiled.plan.quality.provenance
    with pytest.raises(InputError, match=r"or an nn.Module; found a Tensor"):
        plan(torch.zeros(3), two_cpus(), BATCH)


def test_observers_see_every_pass_of_planning() -> None:
    seen: list[str] = []

    def observe(done: object, program: Program) -> None:
        seen.append(str(getattr(done, "name", "")))

    plan("demo", two_cpus(), BATCH, indicator="prior", observe=observe)
    assert seen == ["derive-costs", "estimate-sensitivity", "assign-joint"]
