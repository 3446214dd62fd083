"""A tensor-parallel group on vLLM: the plan of a tiny Llama on two CPUs that share every layer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import llmpq
from llmpq.export.vllm_settings import VllmSettings
from llmpq.frontend.models import data_path, load_tokenizer
from llmpq.serialize import loads
from tests.command_line import llmpq as command_line
from tests.engines.vllm_run import PYTHON

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not PYTHON.is_file(), reason="there is no environment .engines; `make engines` makes it"),
]
TWINS = """
name: twins
devices:
  - {type: CPU, count: 2, memory: 64 MiB, host: a}
links:
  within_host: {bandwidth: 100 GB/s, latency: 0 us}
"""


def random_llama(directory: Path) -> Path:
    """Four heads, two of them for keys and values, so that two ranks share them; the tokenizer of the demo model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    demo = data_path("models", "demo")
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        vocab_size=len(load_tokenizer(demo)),
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo / name, directory / name)
    return directory


def test_two_ranks_compute_the_reference_with_the_blocks_predicted(tmp_path: Path) -> None:
    cluster, out, export = tmp_path / "twins.yaml", tmp_path / "out", tmp_path / "export"
    cluster.write_text(TWINS)
    compiled = llmpq.compile(
        random_llama(tmp_path / "model"),
        cluster,
        llmpq.Batch(1, 80, 16),
        out=out,
        engine="vllm",
        constraints=tuple(f"count({name}) >= 1" for name in ("16", "w8a8", "w8a16", "w4a16")),
        sensitivity_budget=100.0,
        indicator="prior",
        quantizer="rtn",
        quality_check=False,
    )
    assert [stage.device for stage in compiled.plan.stages] == ["CPU:0+CPU:1"]
    done = command_line("export", out, "--to", "vllm", "-o", export, "--check", "--python", PYTHON, "--json")
    assert done.code == 0, done.err[-4000:]
    settings = loads(VllmSettings, (export / "vllm.json").read_text(), "vllm.json")
    assert (settings.tensor_parallel, settings.partition, settings.devices) == (2, (4,), ("CPU:0", "CPU:1"))
    check = json.loads(done.out)["check"]
    print(check)
    assert check["mean_difference"] <= check["tolerance"] and check["kv_blocks_found"] == check["kv_blocks_predicted"]
