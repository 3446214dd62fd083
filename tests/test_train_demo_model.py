"""The training script of the demo model, and the model that it made."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "llmpq/data/models/demo"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_model", ROOT / "examples/train_demo_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_banners_rules_and_trailing_space_are_cleaned_away(script: Any) -> None:
    source = "#! /usr/bin/env python\n# Licence\n\nimport os  \n# ----------\n\tx = 1\n" + "y = 2\n" * 20
    assert script.clean(source) == "import os\n    x = 1\n" + "y = 2\n" * 20


@pytest.mark.parametrize("source", ["import os\n", "TABLE = {\n" + "    0x41: 0x61,\n" * 40 + "}\n"])
def test_short_files_and_data_tables_are_left_out(script: Any, source: str) -> None:
    assert script.clean(source) is None


@pytest.mark.parametrize("arch", ["llama", "opt"])
def test_both_architectures_have_about_five_million_parameters_and_tied_embeddings(script: Any, arch: str) -> None:
    model = script.build_model(arch)
    assert 5.0e6 < sum(p.numel() for p in model.parameters()) < 6.0e6
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_an_epoch_shows_every_window_once(script: Any) -> None:
    stream = script.batches(torch.arange(1000), 4, 10, seed=0)
    shown = torch.cat([next(stream) for _ in range(24)])
    assert len(set(shown[:, 0].tolist())) == 96
    assert bool((shown[:, 1:] - shown[:, :-1] == 1).all())


def test_a_trained_directory_is_a_checkpoint_without_a_second_head(script: Any, tmp_path: Path) -> None:
    tokenizer = script.train_tokenizer(["def main():\n    return 1\n"] * 50)
    script.save(script.build_model("llama"), tokenizer, tmp_path, {"arch": "llama"})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  # a safetensors file is no mapping
        assert file.get_tensor("model.embed_tokens.weight").dtype == torch.bfloat16


def test_the_bundled_model_records_how_it_was_trained() -> None:
    record = json.loads((DEMO / "training.json").read_text())
    assert record["arch"] == "llama"
    assert record["parameters"] == 5_116_608
    assert set(record["held_out_loss_nats_per_token"]) == {"calibrate", "tune", "report"}
    assert 0 < record["held_out_loss_nats_per_token"]["report"] < 4.0
    assert (DEMO / "LICENSE-PSF.txt").is_file()


def test_the_bundled_texts_do_not_overlap() -> None:
    lines = [set((DEMO / "texts" / f"{name}.txt").read_text().splitlines()) for name in ("calibrate", "tune", "report")]
    long = [{line for line in text if len(line) > 60} for text in lines]
    assert all(len(a & b) < 0.02 * len(a) for a in long for b in long if a is not b)
